"""Addresses and socket options that every connection to a relay has in common."""

from __future__ import annotations

import socket

from shoal.model import errors

MAX_WAIT_S = 60.0
"""How long the relay may be asked to wait for an agent."""

_KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))
"""A machine that vanished without a word is noticed within 35 s, so that no wait on it is for ever."""

_UNANSWERED_MS = 30_000


def split_address(address: str) -> tuple[str, int]:
    """`host:port` in its parts; `InvalidRequest` where it is something else."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise errors.InvalidRequest(f"address must be host:port, not {address!r}", field="address")
    return host, int(port)


def check_opening(token: str, wait_s: float) -> None:
    """Refuses what no relay would take, before a byte goes out."""
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise errors.InvalidRequest(f"wait_s must be 0 to {MAX_WAIT_S:g} seconds, not {wait_s}", field="wait_s")
    if not token or not token.isascii() or len(token) > 4096:
        raise errors.Unauthenticated("the token is empty or malformed: ask for a new one")


def tune(sock: socket.socket, *, prompt_reader: bool) -> None:
    """No delays, and a watch for a peer that vanished.

    `prompt_reader`: the peer always reads, so what it does not acknowledge for 30 s is lost. Never say so of a peer that may pause:
    the kernel takes a window that stays closed for a peer that is gone.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = (*_KEEPALIVE, ("TCP_USER_TIMEOUT", _UNANSWERED_MS)) if prompt_reader else _KEEPALIVE
    for name, value in options:
        if hasattr(socket, name):  # not every system has all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
