"""Addresses and socket options of connections to a relay."""

from __future__ import annotations

import re
import socket
from typing import NamedTuple

from shoal.model import errors
from shoal.model.grants import TLS_SCHEME

MAX_WAIT_S = 60.0
"""How long the relay may be asked to wait for an agent."""

_KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3))
"""A machine that vanished is noticed within 20 s, so that nothing waits for it for ever."""

_UNANSWERED_MS = 20_000

_FINGERPRINT = re.compile("[0-9a-f]{64}")


class Endpoint(NamedTuple):
    """Where a relay is. `fingerprint`: the SHA-256 of its certificate in hexadecimal; empty: it speaks no TLS."""

    host: str
    port: int
    fingerprint: str = ""


def parse_endpoint(address: str) -> Endpoint:
    """Parses what `grants.endpoint` writes; `InvalidRequest` if it is anything else."""
    fingerprint, place = "", address
    if address.startswith(TLS_SCHEME):
        fingerprint, at, place = address.removeprefix(TLS_SCHEME).partition("@")
        if not at or not _FINGERPRINT.fullmatch(fingerprint):
            raise errors.InvalidRequest(f"address must be {TLS_SCHEME}FINGERPRINT@host:port", field="address")
    host, colon, port = place.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise errors.InvalidRequest(f"address must be host:port, not {address!r}", field="address")
    return Endpoint(host, int(port), fingerprint)


def check_opening(token: str, wait_s: float) -> None:
    """Checks what the relay would refuse, before anything is sent."""
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise errors.InvalidRequest(f"wait_s must be 0 to {MAX_WAIT_S:g} seconds, not {wait_s}", field="wait_s")
    if not token or not token.isascii() or len(token) > 4096:
        raise errors.Unauthenticated("the token is empty or malformed: ask for a new one")


def cannot_reach(relay: Endpoint, error: OSError) -> errors.Unavailable:
    """What a socket's error means to who opens a connection."""
    return errors.Unavailable(f"the relay at {relay.host}:{relay.port} cannot be reached: {error.strerror or error}")


def tune(sock: socket.socket, *, prompt_reader: bool) -> None:
    """Disables delays, and detects a peer that vanished.

    `prompt_reader`: the peer always reads, so 20 s without an acknowledgement mean that it is gone. Not for a peer that
    may pause: to the kernel, a window that stays closed looks the same.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = (*_KEEPALIVE, ("TCP_USER_TIMEOUT", _UNANSWERED_MS)) if prompt_reader else _KEEPALIVE
    for name, value in options:
        if hasattr(socket, name):  # some systems lack some of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
