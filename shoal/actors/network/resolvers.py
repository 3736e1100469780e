"""Chooses the name servers for sandboxes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Address
from pathlib import Path

from shoal.model.errors import InvalidRequest

# If `/etc/resolv.conf` names a local resolver, the others name the servers that it asks.
RESOLV_FILES = (
    Path("/etc/resolv.conf"),
    Path("/run/systemd/resolve/resolv.conf"),
    Path("/run/NetworkManager/no-stub-resolv.conf"),
)
_MOST = 3
"""The C library asks no more."""


def parse_servers(text: str) -> list[str]:
    """The IPv4 name servers of a `resolv.conf`, in order."""
    servers = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and _is_ipv4(words[1]):
            servers.append(words[1])
    return servers


def choose_servers(configured: Iterable[str], texts: Iterable[str], own: Collection[str]) -> tuple[str, ...]:
    """The configured servers; else those of the first text that names any which sandboxes can ask. Never one on the
    node itself: its addresses are closed to sandboxes, also for DNS. `InvalidRequest` (field `network.dns`) for an
    invalid address."""
    wanted = list(configured)
    for server in wanted:
        if not _is_ipv4(server):
            raise InvalidRequest(f"network.dns: {server!r} is no IPv4 address", field="network.dns")
    for servers in [wanted] if wanted else map(parse_servers, texts):
        usable = [s for s in servers if s not in own and not _is_local(s)]
        if usable:
            return tuple(usable[:_MOST])
    return ()


def resolv_conf(servers: Iterable[str]) -> str:
    """The text of `/etc/resolv.conf` for sandboxes."""
    return "".join(f"nameserver {server}\n" for server in servers)


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_local(server: str) -> bool:
    address = IPv4Address(server)
    return address.is_loopback or address.is_unspecified
