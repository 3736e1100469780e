"""The packet rules, as text for nft. Pure: shows all that a sandbox may reach.

The rules are a table of their own that names no address of the node: `fib daddr type local` asks the kernel, so an
address that the node gets tomorrow is closed, too. Destinations are judged twice, before and after anybody's address
translation. Else a port that is published on the node, or a service address of a cluster, would lead to where a packet
may not go.

Other tables see the packets as well, and each may drop them: see `forwarding.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, ip_address

from shoal.actors.network import guarded
from shoal.actors.network.destinations import CLOSED, METADATA, Destination

NODES = "nodes"
"""The set of the cluster's machines, IPv4; with a 6 behind it, IPv6."""

COUNTED = "connections"
"""The set in which the kernel counts each sandbox's connections."""

_SET = re.compile(r"^\s*set (\w+) \{$(.*?)^\s*\}$", re.MULTILINE | re.DOTALL)
_ELEMENTS = re.compile(r"^\s*elements = \{([^}]*)\}\n", re.MULTILINE)


def elements(listing: str, name: str) -> list[str]:
    """What the set `name` holds, in the text by which nft lists a table."""
    for found in _SET.finditer(listing):
        inside = _ELEMENTS.search(found[2])
        if found[1] == name and inside:
            return [element.strip() for element in inside[1].split(",")]
    return []


def without_elements(listing: str, name: str) -> str:
    """The listing without what the set `name` holds, which changes by itself."""
    for found in _SET.finditer(listing):
        if found[1] == name:
            return listing[: found.start(2)] + _ELEMENTS.sub("", found[2]) + listing[found.end(2) :]
    return listing


def table_name(bridge: str) -> str:
    return f"shoal_{bridge}"


def ruleset(
    bridge: str,
    subnet: IPv4Network,
    dns: Sequence[str],
    allow: Sequence[Destination],
    nodes: Sequence[str] = (),
    *,
    connections: int = 4096,
) -> str:
    """The rules. `nodes`: the addresses of the cluster's machines, closed whatever `dns` and `allow` open;
    `connections`: the most that the kernel tracks for one sandbox. They replace the table in one transaction, so that
    there is no moment without rules."""
    table = f"inet {table_name(bridge)}"
    before = _judgement(subnet, dns, allow, original="ip daddr", port="th dport", closes_local=True)
    behind = _judgement(
        subnet, dns, allow, original="ct original ip daddr", port="ct original proto-dst", closes_local=False
    )
    return f"""\
add table {table}
delete table {table}
table {table} {{
	set {NODES} {{
		type ipv4_addr
		{_elements(address for address in nodes if ip_address(address).version == 4)}
	}}
	set {NODES}6 {{
		type ipv6_addr
		{_elements(address for address in nodes if ip_address(address).version == 6)}
	}}
	set {COUNTED} {{
		type ipv4_addr
		size 65535
		flags dynamic
	}}
	chain before {{
		type filter hook prerouting priority raw; policy accept;
		iifname != "{bridge}" accept
		ip6 daddr @{NODES}6 drop
		meta nfproto != ipv4 drop
		ip saddr != {subnet} drop
		{_lines(before)}
	}}
	chain input {{
		type filter hook input priority filter - 10; policy accept;
		iifname "{bridge}" drop
	}}
	chain forward {{
		type filter hook forward priority filter - 10; policy accept;
		iifname "{bridge}" oifname "{bridge}" drop
		oifname "{bridge}" meta nfproto != ipv4 drop
		oifname "{bridge}" ct state established accept
		oifname "{bridge}" meta l4proto icmp ct state related accept
		oifname "{bridge}" drop
		iifname "{bridge}" jump out
	}}
	chain out {{
		meta nfproto != ipv4 drop
		ct state established accept
		ct state invalid drop
		ct state new add @{COUNTED} {{ ip saddr ct count over {connections} }} drop
		{_lines(behind)}
	}}
	chain guarded {{
		{_lines(guarded.rules(allow, NODES))}
	}}
	chain output {{
		type filter hook output priority filter - 10; policy accept;
		{guarded.choice(bridge, "guarded")}
	}}
	chain behind {{
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr {subnet} oifname != "{bridge}" masquerade
	}}
}}
"""


def _judgement(
    subnet: IPv4Network,
    dns: Sequence[str],
    allow: Iterable[Destination],
    *,
    original: str,
    port: str,
    closes_local: bool,
) -> list[str]:
    """The rules about destinations; the first match wins. `original`, `port`: where the sender meant to go."""
    rules = []
    if closes_local:
        rules.append("fib daddr type != unicast drop")
    rules.append(f"ip daddr {subnet} drop")
    rules += [f"ip daddr @{NODES} drop", f"{original} @{NODES} drop"]
    if dns:
        # Before the metadata addresses: some clouds answer DNS there.
        rules.append(f"meta l4proto {{ tcp, udp }} {original} {_set(dns)} {port} 53 accept")
    rules.append(f"ip daddr {_set(METADATA)} drop")
    rules.append(f"{original} {_set(METADATA)} drop")
    rules += [_opened(destination, original, port) for destination in allow]
    rules.append(f"ip daddr {_set(CLOSED)} drop")
    return rules


def _opened(destination: Destination, original: str, port: str) -> str:
    rule = f"{original} {destination.network}"
    if destination.port is not None:
        rule = f"meta l4proto {{ tcp, udp }} {rule} {port} {destination.port}"
    return f"{rule} accept"


def _elements(addresses: Iterable[str]) -> str:
    found = ", ".join(dict.fromkeys(addresses))
    return f"elements = {{ {found} }}" if found else ""


def _set(elements: Sequence[str]) -> str:
    return "{ " + ", ".join(dict.fromkeys(elements)) + " }"


def _lines(rules: Iterable[str]) -> str:
    return "\n\t\t".join(rules)
