"""The gateway of a node that serves the API: it takes the API's connections and passes requests to replicas and
tunnels.

The listening socket is the keeper's as much as the gateway's: where the gateway is killed, the kernel keeps who
connects meanwhile for the next one, and a successor takes over without a refused connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

from shoal.actors.node.program import IDLE_EXIT_S, Program
from shoal.model.errors import FailedPrecondition, ShoalError, Unavailable
from shoal.model.serving_paths import ServingPaths
from shoal.model.settings import ApiSettings, TelemetrySettings
from shoal.model.tracing import resource_of

_log = logging.getLogger("shoal.gateway")

DRAIN_S = 60
"""Seconds that a gateway which goes gives to what it has under way."""

IDLE_S = 75
"""Seconds after which it closes a client's connection that carries nothing."""

_BACKLOG = 4096
_RECEIVE_S = 5.0


class Gateway(Program):
    """The node's gateway. `api`: the cluster's settings, with the port decided; `hostname`: for its spans."""

    def __init__(
        self,
        binary: Path,
        paths: ServingPaths,
        api: ApiSettings,
        log: Path,
        telemetry: TelemetrySettings | None = None,
        hostname: str = "",
    ) -> None:
        super().__init__(binary, "gateway", "gateway", paths.control, log)
        self._paths = paths
        self._api = api
        self._telemetry = telemetry or TelemetrySettings()
        self._hostname = hostname
        self._listener: socket.socket | None = None
        self._rolling = asyncio.Lock()

    @property
    def wanted(self) -> bool:
        """Whether the node serves the API, also after a restart of its actor."""
        return self._paths.replicas.is_dir()

    async def open(self) -> None:
        """Adopts the gateway that runs, or starts one; watches it from then on. One that was started with other
        settings is replaced, as by `roll`. Idempotent.

        Raises `FailedPrecondition` where the address is taken, `Unavailable` where the program does not start.
        """
        async with self._rolling:
            if self.watched:
                return
            self._paths.replicas.mkdir(mode=0o700, parents=True, exist_ok=True)
            await self._connect_or_start()
            if await asyncio.to_thread(self._started_with) != self._digest():
                await self._replace()
            self.watch()

    async def close(self) -> None:
        """Stops the gateway. Idempotent."""
        await super().close()
        self._note.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Lets go of the listening socket, which the gateway has, too."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def roll(self, binary: Path) -> None:
        """Puts another gateway in this one's place, which refuses nobody and ends what it has under way."""
        async with self._rolling:
            self.binary = binary
            await self.pause()
            try:
                await self._replace()
            finally:
                self.watch()

    async def _replace(self) -> None:
        if not self.is_connected and not await self.connect():
            return  # it is gone: the watcher starts another
        await self.connected(await self.ask({"op": "info"}))
        await self.start()
        try:
            await self.ask({"op": "drain"})
        except ShoalError as error:
            _log.warning("the gateway that was replaced did not answer: %s", error)
        self.drop()

    async def start(self) -> None:
        """Starts one on the listening socket, which is bound where there is none yet."""
        if self._listener is None:
            self._listener = _listen(self._api.host, self._api.port)
        listener = os.dup(self._listener.fileno())  # `launch` closes it
        if await self.launch(self._configuration(listener), (listener,)) is None:
            raise Unavailable(f"the gateway does not start; see {self.log}")
        await asyncio.to_thread(self._note.write_text, self._digest())

    async def connected(self, info: dict[str, Any]) -> None:
        """Gets the listening socket of a gateway that was adopted."""
        if self._listener is None:
            self._listener = await asyncio.to_thread(_receive_listener, self.control)

    @property
    def _note(self) -> Path:
        """Has the digest of the settings with which the gateway was started."""
        return self.control.with_suffix(".settings")

    def _started_with(self) -> str | None:
        try:
            return self._note.read_text()
        except FileNotFoundError:
            return None

    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self._configuration(-1), sort_keys=True).encode()).hexdigest()

    def _configuration(self, listener: int) -> dict[str, Any]:
        api = self._api
        return {
            "listener": listener,
            "control": str(self._paths.control),
            "replicas": str(self._paths.replicas),
            "tls_cert": None if api.tls_cert is None else str(api.tls_cert),
            "tls_key": None if api.tls_key is None else str(api.tls_key),
            "public_url": api.url,
            "tunnel_domain": api.tunnel_domain,
            "trusted_proxies": list(api.trusted_proxies),
            "header_timeout_s": api.header_timeout,
            "idle_timeout_s": IDLE_S,
            "drain_s": DRAIN_S,
            "idle_exit_s": IDLE_EXIT_S,
            "auth": api.auth,
            "confine": api.confine_tunnels,
            "log_format": self._telemetry.log_format,
            "traces": {
                "endpoint": self._telemetry.traces,
                "share": self._telemetry.trace_share,
                "headers": None if self._telemetry.headers is None else str(self._telemetry.headers),
                "resource": resource_of("gateway", {"host.name": self._hostname}),
            },
        }


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise FailedPrecondition(f"api.port: {port} on {host}: {error.strerror}", state="port_taken") from None
    return listener


def _receive_listener(control: Path) -> socket.socket:
    """The listening socket of the gateway that answers at `control`. Blocks."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_RECEIVE_S)
            connection.connect(str(control))
            connection.sendall(json.dumps({"op": "listener"}).encode() + b"\n")
            _, descriptors, _, _ = socket.recv_fds(connection, 1 << 12, 1)
    except OSError as error:
        raise Unavailable(f"the node's gateway does not hand over its listening socket: {error}") from None
    if not descriptors:
        raise Unavailable("the node's gateway does not hand over its listening socket")
    os.set_inheritable(descriptors[0], False)  # which descriptors that are received are
    return socket.socket(fileno=descriptors[0])
