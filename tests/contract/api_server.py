"""The API over any transport, on a socket of this process: what replicas are, without Serve.

With the real gateway before it, if asked for.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Self

import uvicorn
from fastapi import FastAPI

from shoal.actors.node.gateway import Gateway
from shoal.cluster.api.app import make_app
from shoal.cluster.api.tunnels.internal import make_internal_app
from shoal.cluster.serving.replica_server import OPTIONS
from shoal.images.binaries import agent_binary
from shoal.model.serving_paths import ServingPaths
from shoal.model.settings import Settings
from shoal.transport.contract import Transport
from tests.ports import free_port


class ApiServer:
    """One replica, in the loop that started it."""

    def __init__(self, app: FastAPI, url: str) -> None:
        self.app = app
        self.url = url
        self.gateway: Gateway | None = None
        self._directory: Path | None = None
        self._servers: list[tuple[uvicorn.Server, asyncio.Task[None]]] = []

    @classmethod
    async def start(cls, transport: Transport, settings: Settings | None = None, port: int = 0) -> Self:
        """Listens on the loopback when it returns. `port` 0: any free one."""
        app = make_app(transport, settings or Settings())
        listening = socket.create_server(("127.0.0.1", port), backlog=512)
        # asyncio sets it only on sockets that say they are TCP's; without it each answer's body waits 40 ms for an
        # acknowledgement.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made = cls(app, f"http://127.0.0.1:{listening.getsockname()[1]}")
        await made._serve(_config(app), [listening])
        return made

    @classmethod
    async def start_behind_gateway(cls, transport: Transport, settings: Settings | None = None) -> Self:
        """The same behind a gateway, which listens when it returns."""
        settings = settings or Settings()
        app = make_app(transport, settings)
        api = settings.api.model_copy(update={"port": free_port()})
        made = cls(app, f"http://127.0.0.1:{api.port}")
        made._directory = Path(tempfile.mkdtemp(prefix="shoal-", dir="/tmp"))
        paths = ServingPaths(made._directory, "lab")
        made.gateway = Gateway(agent_binary(), paths, api, made._directory / "gateway.log")
        paths.replicas.mkdir(parents=True)
        await made._serve(_config(make_internal_app(app), uds=str(paths.replicas / "0.internal"), lifespan="off"))
        await made._serve(_config(app, uds=str(paths.replicas / "0.sock")))
        await made.gateway.open()
        return made

    async def _serve(self, config: uvicorn.Config, sockets: list[socket.socket] | None = None) -> None:
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve(sockets))
        while not server.started:
            if running.done():
                running.result()
            await asyncio.sleep(0.01)
        self._servers.append((server, running))

    def drop_connections(self) -> None:
        """Breaks all that is connected, in the midst of whatever it does."""
        for server, _ in self._servers:
            for connection in list(server.server_state.connections):
                if connection.transport is not None:
                    connection.transport.abort()

    async def stop(self) -> None:
        """Ends it, with what is under way."""
        if self.gateway is not None:
            await self.gateway.close()
        for server, _ in self._servers:
            server.should_exit = True
        self.drop_connections()
        for _, running in self._servers:
            await running
        if self._directory is not None:
            shutil.rmtree(self._directory)


def _config(app: object, **more: object) -> uvicorn.Config:
    return uvicorn.Config(app, loop="asyncio", **{**OPTIONS, "timeout_graceful_shutdown": 2, **more})  # type: ignore[arg-type]
