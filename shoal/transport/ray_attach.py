"""Connecting this process to Ray, and finding the controller."""

from __future__ import annotations

import logging
import socket
import threading
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # made by Cython, without stubs
from ray.actor import ActorHandle

from shoal.model.errors import FailedPrecondition, InvalidRequest, Unauthenticated, Unavailable
from shoal.model.ids import CONTROLLER, NAMESPACE
from shoal.model.ray_errors import translate

_KNOCK_S = 5.0
_GREETING_S = 0.5
_attaching = threading.Lock()
_ray_log = logging.getLogger("shoal.ray")


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
    _read_environment_again(address)
    log = logging.getLogger("ray._private.worker")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns that it does not handle signals in this thread, which is intended
    # Ray prints what it tells a driver to stdout, whatever `log_to_driver` says: into the JSON that a script reads.
    ray_worker.print_to_stdstream = _log_what_ray_says
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except ray_errors.AuthenticationError as error:
        raise Unauthenticated(f"Ray at {address} refuses this process: {error}") from None
    except (ConnectionError, TimeoutError, RuntimeError, ray_errors.RayError) as error:
        raise Unavailable(
            f"Ray at {address} does not let this process in ({error}): it has only just been started, or its token is "
            "not the one that RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH names"
        ) from None
    finally:
        log.setLevel(level)


def _log_what_ray_says(data: dict[str, Any], ignore_prefix: bool) -> None:
    for line in data["lines"]:
        _ray_log.info(line)


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


def _read_environment_again(address: str) -> None:
    """Ray reads its environment on import, which may have been before the cluster was known."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    if address.startswith("127.0.0.1:"):
        ray_constants.ENABLE_RAY_CLUSTER = False  # it would replace the loopback by the machine's own address
