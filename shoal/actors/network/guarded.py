"""The guarded group: programs of the node's own that speak to an address which a user chose, such as a bucket's.

They reach the public internet, and of private destinations those of `network.allow`. The kernel holds it, by the group
that owns a socket: neither a name that has another address when it is asked for again, nor a service that redirects its
callers, leads to a cloud's metadata, to a port of a node or into a private network. Pure.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from shoal.actors.network.destinations import CLOSED, METADATA, Destination

PUBLIC6 = "2000::/3"
CLOSED6 = ("2001::/32", "2001:db8::/32", "2002::/16")
"""Of `PUBLIC6`, what is an IPv4 address in another form, or nobody's."""

_GROUPS = 0x5348_0000


def group_id(bridge: str) -> int:
    """The id of the group, which has no name. Each bridge, so each cluster of a machine, has another."""
    return _GROUPS + (zlib.crc32(bridge.encode()) & 0xFFFF)


def may_reach(address: IPv4Address | IPv6Address, port: int, allow: Iterable[Destination]) -> bool:
    """Whether the rules let the group reach it, as far as the address alone tells: a node's is not known here."""
    if isinstance(address, IPv6Address):
        return _within(address, (PUBLIC6,)) and not _within(address, CLOSED6)
    if _within(address, METADATA):
        return False
    opened = any(address in each.network and each.port in (None, port) for each in allow)
    return opened or not _within(address, CLOSED)


def choice(bridge: str, chain: str) -> str:
    """The rule that sends what the group sends to `chain`. It names the group, not the others: a packet of a socket
    that its program has closed, and one that the kernel itself sends, has no group."""
    return f"meta skgid {group_id(bridge)} jump {chain}"


def rules(allow: Sequence[Destination], nodes: str) -> list[str]:
    """The rules for what the group sends; the first match wins. `nodes`: the set of the cluster's machines, IPv4; with
    a 6 behind it, IPv6."""
    exact = [each for each in allow if _is_exact(each)]
    wide = [each for each in allow if not _is_exact(each)]
    return [
        "udp dport 53 accept",  # the machine's own name servers, wherever they are
        f"ip daddr {_set(METADATA)} drop",
        *map(_opened, exact),
        "fib daddr type != unicast drop",
        f"ip daddr @{nodes} drop",
        f"ip6 daddr @{nodes}6 drop",
        *map(_opened, wide),
        f"ip daddr {_set(CLOSED)} drop",
        f"ip6 daddr != {PUBLIC6} drop",
        f"ip6 daddr {_set(CLOSED6)} drop",
    ]


def _is_exact(destination: Destination) -> bool:
    """Whether it says so much that a service on a node may be meant."""
    return destination.port is not None or destination.network.prefixlen == 32


def _opened(destination: Destination) -> str:
    port = "" if destination.port is None else f" tcp dport {destination.port}"
    return f"ip daddr {destination.network}{port} accept"


def _within(address: IPv4Address | IPv6Address, networks: Iterable[str]) -> bool:
    kind = IPv4Network if isinstance(address, IPv4Address) else IPv6Network
    return any(address in kind(network) for network in networks)


def _set(elements: Sequence[str]) -> str:
    return "{ " + ", ".join(elements) + " }"
