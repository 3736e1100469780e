"""Connecting this process to Ray, and finding the controller.

Ray's own ways are used as they are documented. What Ray changes in a process beyond its connection is put back: a
library leaves the process's signal handlers to its owner.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray.actor import ActorHandle

from shoal.model.errors import FailedPrecondition, InvalidRequest, Unauthenticated, Unavailable
from shoal.model.ids import CONTROLLER, NAMESPACE
from shoal.model.ray_errors import translate

_KNOCK_S = 5.0
_GREETING_S = 0.5
_SIGACTION_BYTES = 1024
"""More than a `struct sigaction` has on any platform (152 bytes on Linux)."""

_attaching = threading.Lock()


def attach(address: str | None) -> ActorHandle[Any]:
    """Connects to Ray (blocking: seconds) and looks the controller up."""
    with _attaching:
        if not ray.is_initialized():
            _init(address)
        try:
            return ray.get_actor(CONTROLLER, namespace=NAMESPACE)
        except ValueError:
            raise FailedPrecondition(
                "this Ray cluster has no controller of Shoal's; start one with `shoal up`", state="no_cluster"
            ) from None
        except ray_errors.RayError as error:
            raise translate(error, "Ray") from None


def _init(address: str | None) -> None:
    if address is None:
        raise FailedPrecondition(
            "there is no cluster: RAY_ADDRESS is not set and none was started on this machine; run `shoal up`, or pass "
            "the address of one",
            state="no_cluster",
        )
    _knock(address)
    try:
        with _own_sigterm(), _without_warnings():
            ray.init(address=address, log_to_driver=False, configure_logging=False)
    except ray_errors.AuthenticationError as error:
        raise Unauthenticated(f"Ray at {address} refuses this process: {error}") from None
    except (ConnectionError, TimeoutError, RuntimeError, ray_errors.RayError) as error:
        raise Unavailable(
            f"Ray at {address} does not let this process in ({error}): it has only just been started, or its token is "
            "not the one that RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH named when this process first used Ray"
        ) from None


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps the process's own handling of SIGTERM.

    On connecting, Ray's core worker installs a handler in C for signals of crashes, and counts SIGTERM among them: it
    would print a stack trace, and handlers in Python would never run. Python's `signal` can undo that only in the main
    thread, so the C library is asked.
    """
    library = ctypes.CDLL(None)
    own = ctypes.create_string_buffer(_SIGACTION_BYTES)
    library.sigaction(signal.SIGTERM, None, own)
    try:
        yield
    finally:
        library.sigaction(signal.SIGTERM, own, None)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Ray warns that it does not handle signals in a thread like this one, which is intended."""
    log = logging.getLogger("ray")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _knock(address: str) -> None:
    """`Unavailable` at once if nobody listens: Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        return  # one of Ray's words, such as `auto`
    try:
        with socket.create_connection((host.removeprefix("[").removesuffix("]"), int(port)), _KNOCK_S) as connection:
            speaks_http = _speaks_http(connection)
    except (OSError, OverflowError, UnicodeError) as error:
        raise Unavailable(f"no Ray cluster answers at {address} ({error}); `shoal status` tells what runs") from None
    if speaks_http:
        raise InvalidRequest(
            f"address: what answers at {address} is no Ray cluster but speaks HTTP; for an API write http://{address}",
            field="address",
        )


def _speaks_http(connection: socket.socket) -> bool:
    """Whether it is an HTTP server: that waits for a request, while Ray's server speaks first."""
    try:
        connection.settimeout(_GREETING_S)
        try:
            return connection.recv(5) == b"HTTP/"
        except TimeoutError:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.recv(5) == b"HTTP/"
    except OSError:
        return False  # Ray will say what it is
