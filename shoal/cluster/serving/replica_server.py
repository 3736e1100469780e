"""The HTTP servers of one replica: uvicorn on two unix sockets, in a thread and an event loop of their own."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from shoal.model.errors import Unavailable

GRACE_S = 60
"""Seconds that a replica which goes gives to what it is doing."""

UNKNOWN_S = 1.5
"""Seconds for which it still answers once its sockets have no name any more: until the gateway sends it nothing more.
"""

_MESSAGE_BYTES = 1 << 20
_PING_INTERVAL_S = 20.0
_IDLE_S = 3600
_START_S = 30.0
_LOOK_S = 0.02

OPTIONS: dict[str, Any] = {
    "log_config": None,
    "access_log": False,
    "server_header": False,
    # Only the gateway can connect. It closes idle connections itself, so that none is closed while it sends a request.
    "timeout_keep_alive": _IDLE_S,
    "forwarded_allow_ips": "*",
    "ws": "websockets-sansio",
    "ws_max_size": _MESSAGE_BYTES,
    # With compression a read of 64 KiB could be 64 MiB of messages.
    "ws_per_message_deflate": False,
    "ws_ping_interval": _PING_INTERVAL_S,
    # A pong waits behind what the sandbox has not taken yet. It is the gateway that notices dead clients.
    "ws_ping_timeout": None,
    "timeout_graceful_shutdown": GRACE_S,
}
"""What replicas give uvicorn."""

Apps = tuple[ASGIApp, ASGIApp]
"""The public application, and the internal one for the gateway."""


class ReplicaServer:
    """Serves the applications that `make` gives, as `<directory>/<id>.sock` and `<id>.internal`.

    `make` runs in the servers' own loop.
    """

    def __init__(self, directory: Path, make: Callable[[], Awaitable[Apps]]) -> None:
        identifier = secrets.token_hex(4)
        self.public = directory / f"{identifier}.sock"
        self.internal = directory / f"{identifier}.internal"
        self._make = make
        self._servers: list[uvicorn.Server] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)

    def start(self) -> None:
        """Returns once requests are answered. Raises what kept it from that. Blocks."""
        _allow_many_connections()
        self.public.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_dead(self.public.parent)
        self._thread.start()
        end = time.monotonic() + _START_S
        while not (self._servers and all(server.started for server in self._servers)):
            if not self._thread.is_alive():
                raise self._failure or Unavailable("the replica's HTTP server ended at once")
            if time.monotonic() > end:
                raise Unavailable(f"the replica's HTTP server did not start within {_START_S:g} s")
            time.sleep(_LOOK_S)
        # Under their names only now: whoever finds them finds somebody who answers.
        for path in (self.internal, self.public):
            _unnamed(path).rename(path)

    async def answers(self) -> bool:
        """Whether the servers' loop turns."""
        if self._loop is None or not self._thread.is_alive():
            return False
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop))
        return True

    def stop(self) -> None:
        """Takes no more requests, ends what is under way within `GRACE_S`, and returns then. Blocks. Idempotent."""
        for path in (self.public, self.internal):
            path.unlink(missing_ok=True)
        if self._thread.is_alive():
            time.sleep(UNKNOWN_S)
            for server in self._servers:
                server.should_exit = True
            self._thread.join()

    def _run(self) -> None:
        try:
            # The loop that uvicorn itself would choose.
            with asyncio.Runner(loop_factory=uvicorn.Config("", **OPTIONS).get_loop_factory()) as runner:
                self._loop = runner.get_loop()
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001  # `start` raises it
            self._failure = error

    async def _serve(self) -> None:
        public, internal = await self._make()
        self._servers = [
            uvicorn.Server(uvicorn.Config(public, uds=str(_unnamed(self.public)), lifespan="on", **OPTIONS)),
            uvicorn.Server(uvicorn.Config(internal, uds=str(_unnamed(self.internal)), lifespan="off", **OPTIONS)),
        ]
        await asyncio.gather(*(server.serve() for server in self._servers))


def remove_dead(directory: Path) -> None:
    """Removes the sockets of replicas that were killed: those at which nobody answers. Blocks."""
    for path in directory.glob("*.sock"):
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.settimeout(1.0)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
                path.with_suffix(".internal").unlink(missing_ok=True)


def _unnamed(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _allow_many_connections() -> None:
    """A connection is a descriptor, and so is the one to the relay that it may need."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
