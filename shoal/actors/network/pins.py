"""The rules that pin a sandbox's source addresses to its interface, as text for nft. Pure.

Frames that enter the bridge from a sandbox's interface pass only with the MAC and the IPv4 address that the sandbox was
given, in Ethernet, IPv4 and ARP headers alike; other protocols do not pass at all. Sandboxes lack the capabilities to
forge these; the rules hold if one had them.

Our interfaces are recognized by a group number that each has from its creation, so that one that is not in the set yet
passes nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from ipaddress import IPv4Address

PINNED = "pinned"
"""The set of (interface, MAC, IPv4 address)."""


def group(bridge: str) -> int:
    """The group number of the interfaces on `bridge`: 31 bits, never 0, which is the kernel's default."""
    return (zlib.crc32(bridge.encode()) & 0x7FFFFFFF) or 1


def mac(address: IPv4Address) -> str:
    """A locally administered address made from the IPv4 address: the same after every restart."""
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x53, *address.packed))


def pin(interface: str, address: str) -> str:
    """The element of the set for a sandbox's interface."""
    return f'"{interface}" . {mac(IPv4Address(address))} . {address}'


def pin_key(interface: str, address: str) -> bytes:
    """The same as the kernel has it: each part in its own byte order, filled up to four bytes."""
    parts = (interface.encode().ljust(16, b"\0"), bytes.fromhex(mac(IPv4Address(address)).replace(":", "")) + bytes(2))
    return b"".join((*parts, IPv4Address(address).packed))


def pinning(table: str, bridge: str, pins: Iterable[str]) -> str:
    """The rules. They replace the table in one transaction."""
    held = ", ".join(pins)
    return f"""\
add table {table}
delete table {table}
table {table} {{
	set {PINNED} {{
		type ifname . ether_addr . ipv4_addr
		{f"elements = {{ {held} }}" if held else ""}
	}}
	chain entering {{
		type filter hook prerouting priority dstnat; policy accept;
		iifgroup != {group(bridge)} accept
		iifname . ether saddr . ip saddr @{PINNED} accept
		iifname . ether saddr . arp saddr ip @{PINNED} iifname . arp saddr ether . arp saddr ip @{PINNED} accept
		drop
	}}
}}
"""
