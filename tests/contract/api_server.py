"""The API over any transport, on a socket of this process: what Serve's replicas are, without Serve."""

from __future__ import annotations

import asyncio
import socket
from typing import Self

import uvicorn
from fastapi import FastAPI

from shoal.cluster.api.app import make_app
from shoal.cluster.serving.websockets import OPTIONS
from shoal.model.settings import Settings
from shoal.transport.contract import Transport


class ApiServer:
    """One replica, in the loop that started it."""

    def __init__(
        self, app: FastAPI, server: uvicorn.Server, listening: socket.socket, running: asyncio.Task[None]
    ) -> None:
        self.app = app
        self._server = server
        self._listening = listening
        self._running = running
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"

    @classmethod
    async def start(cls, transport: Transport, settings: Settings | None = None, port: int = 0) -> Self:
        """Listens on the loopback when it returns. `port` 0: any free one."""
        app = make_app(transport, settings or Settings())
        listening = socket.create_server(("127.0.0.1", port), backlog=512)
        # asyncio sets it only on sockets that say they are TCP's; without it each answer's body waits 40 ms for an acknowledgement.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2, loop="asyncio", **OPTIONS)
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve([listening]))
        while not server.started:
            if running.done():
                running.result()
            await asyncio.sleep(0.01)
        return cls(app, server, listening, running)

    def drop_connections(self) -> None:
        """Breaks all that is connected, in the midst of whatever it does."""
        for connection in list(self._server.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    async def stop(self) -> None:
        """Ends it, with what is under way."""
        self._server.should_exit = True
        self.drop_connections()
        await self._running
        self._listening.close()
