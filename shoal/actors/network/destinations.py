"""Destinations: those that are closed, and those that the settings open: `10.1.2.3`, `10.0.0.0/8`, `10.1.2.3:8080`,
`10.0.0.0/8:443`."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network

from shoal.model.errors import InvalidRequest

METADATA = ("169.254.169.254", "169.254.170.2", "169.254.170.23", "168.63.129.16", "100.100.100.200", "192.0.0.192")
"""Where clouds keep credentials and configuration for their machines. Closed whatever the settings open."""

CLOSED = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
"""Not on the public internet: private, shared, link-local, test and benchmark networks, multicast, reserved."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A network, and one port of it, or all."""

    network: IPv4Network
    port: int | None = None


def parse_destination(entry: str) -> Destination:
    """Raises `InvalidRequest` (field `network.allow`) for an invalid destination."""
    place, colon, port = entry.strip().partition(":")
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise _invalid(entry)
    try:
        network = IPv4Network(place)
    except ValueError as error:
        raise _invalid(entry) from error
    return Destination(network, int(port) if colon else None)


def parse_subnet(subnet: str) -> IPv4Network:
    """The sandboxes' own network. `InvalidRequest` (field `network.subnet`) for an invalid one, or one too small for a
    bridge and a sandbox."""
    try:
        network = IPv4Network(subnet)
    except ValueError as error:
        raise InvalidRequest(
            f"network.subnet: {subnet!r} is no IPv4 network ({error}); write it as 10.213.0.0/16",
            field="network.subnet",
        ) from error
    if network.prefixlen > 29:
        raise InvalidRequest(f"network.subnet: {subnet} is too small; use a /29 or larger", field="network.subnet")
    return network


def _invalid(entry: str) -> InvalidRequest:
    return InvalidRequest(
        f"network.allow: {entry!r} is no destination; write an IPv4 address or network, with a port or without: "
        "10.1.2.3, 10.0.0.0/8, 10.1.2.3:8080",
        field="network.allow",
    )
