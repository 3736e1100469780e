"""Ports of this machine that tests need: one to listen at, and one at which nobody does."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager


def free_port() -> int:
    """A free port that neither the system nor a cluster gives to anyone else before the caller binds it."""
    for port in random.sample(range(30_000, 32_768), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


@contextmanager
def silent_port() -> Iterator[int]:
    """A port on which nothing listens, nor can meanwhile."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield int(reserved.getsockname()[1])
