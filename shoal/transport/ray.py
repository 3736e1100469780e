"""The transport inside a Ray cluster: control by calls to the controller, data through the relays.

Calls to the controller go through one thin wrapper (`_call`), which turns Ray's errors into Shoal's and, while the controller is
being restarted, makes the call again: each of them may be sent twice (a create carries its idempotency key).
"""

from __future__ import annotations

import asyncio
import builtins
import logging
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, cast

import ray
from ray import exceptions as ray_errors
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # made by Cython, without stubs
from ray.actor import ActorHandle

from shoal.model.errors import FailedPrecondition, Internal, SandboxEnded, ShoalError, Unauthenticated, Unavailable
from shoal.model.grants import Grant
from shoal.model.info import Listing, NodeInfo, SandboxInfo
from shoal.model.settings import SandboxDefaults
from shoal.model.spec import SandboxSpec
from shoal.transport.connections import Connections
from shoal.transport.contract import LogChunk, Transport
from shoal.wire.agent import Agent

CONTROLLER = "controller"
NAMESPACE = "shoal"

RESTART_S = 20.0
"""How long a call waits for a controller that is being restarted."""

_POLL_S = 30.0
"""How long one call of a `wait` may take; longer waits are made of several."""

_UNDO_S = 8.0
_KNOCK_S = 5.0
_attaching = threading.Lock()
_ray_log = logging.getLogger("shoal.ray")


class RayTransport(Transport):
    """A way to the cluster that this process is connected to, or gets connected to by `open`."""

    def __init__(self, controller: ActorHandle[Any]) -> None:
        self._controller = controller
        self._connections = Connections(self._grant)
        self._undoing: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, address: str | None = None) -> RayTransport:
        """Connects this process to Ray, where it is not, and finds the controller.

        `address`: Ray's; None: only what this process is connected to already. Ray's token is where Ray looks for it (its
        environment variables). Raises `FailedPrecondition`, `Unavailable`, `Unauthenticated`.
        """
        return cls(await asyncio.to_thread(_attach, address))

    # Control

    async def defaults(self) -> SandboxDefaults:
        return SandboxDefaults(**await self._call("defaults"))

    async def create(self, spec: SandboxSpec, *, deadline: float) -> SandboxInfo:
        try:
            info, grant = cast("tuple[SandboxInfo, Grant | None]", await self._call("create", spec, deadline))
        except asyncio.CancelledError:
            # Nobody will ever hold it, so it must not stay; the controller does not notice that its caller has gone.
            undoing = asyncio.get_running_loop().create_task(self._undo(spec))
            self._undoing.add(undoing)
            undoing.add_done_callback(self._undoing.discard)
            await asyncio.wait([undoing], timeout=_UNDO_S)
            raise
        if grant is not None:
            self._connections.learn(grant)
        return info

    async def get(self, sandbox_id: str) -> SandboxInfo:
        return cast(SandboxInfo, await self._call("get", sandbox_id))

    async def find(self, name: str, environment: str) -> SandboxInfo:
        return cast(SandboxInfo, await self._call("find", name, environment))

    async def list(self, listing: Listing) -> list[SandboxInfo]:
        return cast("list[SandboxInfo]", await self._call("list_sandboxes", listing))

    async def set_tags(self, sandbox_id: str, tags: Mapping[str, str]) -> SandboxInfo:
        return cast(SandboxInfo, await self._call("set_tags", sandbox_id, dict(tags)))

    async def terminate(self, sandbox_id: str) -> SandboxInfo:
        info = cast(SandboxInfo, await self._call("terminate", sandbox_id))
        self._connections.forget(sandbox_id)
        return info

    async def wait(self, sandbox_id: str, timeout: float | None) -> SandboxInfo:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _POLL_S if end is None else min(_POLL_S, max(0.0, end - time.monotonic()))
            info = cast(SandboxInfo, await self._call("wait", sandbox_id, left))
            if info.ended:
                self._connections.forget(sandbox_id)
                return info
            if end is not None and time.monotonic() >= end:
                return info

    async def logs(self, sandbox_id: str, fd: int, offset: int) -> LogChunk:
        return LogChunk(*await self._call("logs", sandbox_id, fd, offset))

    async def nodes(self) -> builtins.list[NodeInfo]:
        return cast("list[NodeInfo]", await self._call("nodes"))

    # Data

    async def agent(self, sandbox_id: str) -> Agent:
        try:
            return await self._connections.agent(sandbox_id)
        except SandboxEnded:
            self._connections.forget(sandbox_id)
            raise

    async def close(self) -> None:
        if self._undoing:
            await asyncio.wait(self._undoing, timeout=_UNDO_S)
        await self._connections.close()

    async def _grant(self, sandbox_id: str) -> Any:
        return await self._call("grant", sandbox_id)

    # Calls to the controller

    async def _call(self, method: str, *args: Any) -> Any:
        """The method's result, or the error it raised. A controller that is away is waited for, for `RESTART_S`."""
        end = time.monotonic() + RESTART_S
        delay = 0.05
        while True:
            try:
                return await getattr(self._controller, method).remote(*args)
            except ray_errors.RayError as error:
                cause = error_cause(error)
                translated = translate(error, method)
                # A create that the controller itself refuses has been waited for there; all else may soon be possible.
                refused = isinstance(cause, ShoalError) and method in ("create", "grant")
                if not translated.retryable or refused or time.monotonic() + delay > end:
                    raise translated from None
            await asyncio.sleep(delay)
            delay = min(2 * delay, 1.0)
            if isinstance(cause, ray_errors.ActorDiedError):
                # Gone for good, unless somebody has deployed another one.
                self._controller = await asyncio.to_thread(_find, self._controller)

    async def _undo(self, spec: SandboxSpec) -> None:
        """Ends what a create has made or is making. Its idempotency key tells which that is; the call may just be under way."""
        try:
            for delay in (0.0, 0.05, 0.2):
                await asyncio.sleep(delay)
                for info in await self.list(Listing(spec.environment)):
                    if info.spec.idempotency_key == spec.idempotency_key is not None:
                        await self._call("terminate", info.id)
                        return
        except ShoalError:
            pass  # the controller is away: the sandbox's own timeout will end it


def error_cause(error: ray_errors.RayError) -> BaseException:
    """What a method raised, where it was the method; else `error` itself."""
    cause = error.cause if isinstance(error, ray_errors.RayTaskError) else None
    return cause if isinstance(cause, BaseException) else error


def translate(error: ray_errors.RayError, method: str) -> ShoalError:
    """Shoal's error for one of Ray's."""
    cause = error_cause(error)
    if isinstance(cause, ShoalError):
        return cause
    if isinstance(cause, ray_errors.AuthenticationError):
        return Unauthenticated(f"Ray refuses this process's token: {cause}")
    if isinstance(cause, ray_errors.RayActorError):
        return Unavailable(
            "the controller does not answer: it is being restarted, or the cluster is down; `shoal status` tells"
        )
    if isinstance(cause, ray_errors.RayError):
        return Unavailable(f"{method}: Ray could not carry out the call ({type(cause).__name__}: {cause})")
    return Internal(f"{method} failed in the controller: {cause!r}")


def _find(old: ActorHandle[Any]) -> ActorHandle[Any]:
    try:
        return ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    except ValueError:
        return old


def _attach(address: str | None) -> ActorHandle[Any]:
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
            raise translate(error, "connect") from None


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
    log.setLevel(logging.ERROR)  # it warns that it takes no signals over in this thread, which is as it should be
    # What Ray wants to tell a driver it prints to its stdout, whatever `log_to_driver` says: into the JSON that a script reads.
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
    """`Unavailable` at once where nobody listens: Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        return  # one of Ray's words, such as `auto`
    try:
        socket.create_connection((host, int(port)), _KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise Unavailable(f"no Ray cluster answers at {address} ({error}); `shoal status` tells what runs") from None


def _read_environment_again(address: str) -> None:
    """Ray reads its environment when it is imported, which the program may have done before the cluster was known."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    if address.startswith("127.0.0.1:"):
        ray_constants.ENABLE_RAY_CLUSTER = False  # it would put the machine's own address in the place of the loopback
