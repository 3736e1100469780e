"""The API's application on a real port, before a cluster in memory whose sandbox has real servers on its ports."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
from aiohttp import web
from websockets.utils import accept_key

from shoal.cluster.api.app import make_app
from shoal.cluster.serving.websockets import OPTIONS
from shoal.model import grants
from shoal.model.access import Scope
from shoal.model.errors import Unavailable
from shoal.model.settings import ApiSettings, Settings
from shoal.transport.fake import FakeTransport
from shoal.wire.bytestream import ByteStream
from tests.unit.builders import spec

SECRET = bytes(range(32))
PORT = 8080


class QuietServer(uvicorn.Server):
    """It leaves the process's signals alone."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class Lab:
    """`api`: the address of the API, `host:port`; `sandbox_id`: a sandbox with a private http tunnel to `PORT`; `connections`: the API's."""

    api: str
    fake: FakeTransport
    sandbox_id: str
    session: aiohttp.ClientSession
    connections: set[Any]

    def url(self, path: str = "/", port: int = PORT, scheme: str = "http") -> str:
        return f"{scheme}://{self.api}/t/{self.sandbox_id}/{port}{path}"

    def token(self, *, port: int = PORT, ttl_s: float = 60, sandbox_id: str | None = None) -> str:
        return grants.sign(SECRET, sandbox_id or self.sandbox_id, "http", ("tunnel",), time.time() + ttl_s, port=port)

    @property
    def key(self) -> dict[str, str]:
        """The header that opens the private tunnel."""
        return {"X-Shoal-Connect-Token": self.token()}

    async def api_token(self, scope: Scope = Scope.RUN, environment: str = "main") -> str:
        return (await self.fake.admin.create_token("t", environment, scope, None))[1]

    async def new_sandbox(self, environment: str = "main") -> str:
        return (await self.fake.create(spec(environment=environment), deadline=5)).id

    @asynccontextmanager
    async def raw(
        self, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ) -> AsyncIterator[None]:
        """A server on `PORT` that speaks whatever `serve` says."""
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            self.fake.ports[PORT] = through(server.sockets[0].getsockname()[1])
            yield

    @asynccontextmanager
    async def web(self, *routes: web.RouteDef) -> AsyncIterator[None]:
        """A web server on `PORT`."""
        app = web.Application(client_max_size=1 << 30)
        app.add_routes(routes)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.fake.ports[PORT] = through(runner.addresses[0][1])
            yield
        finally:
            await runner.cleanup()


@asynccontextmanager
async def opened(tmp_path: Path, **api: Any) -> AsyncIterator[Lab]:
    """A lab with these settings of the API; nothing is left of it afterwards."""
    fake = FakeTransport()
    settings = Settings(state_dir=tmp_path, api=ApiSettings(**api))
    app = make_app(fake, settings)
    # The protocol is named, for else asyncio does not see that it is TCP, and leaves Nagle's algorithm on.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        config = uvicorn.Config(app, log_level="error", proxy_headers=False, timeout_graceful_shutdown=1, **OPTIONS)
        server = QuietServer(config)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            while not server.started:
                assert not serving.done()
                await asyncio.sleep(0.01)
            sandbox = await fake.create(spec(), deadline=5)
            await fake.expose(sandbox.id, PORT, protocol="http", public=False)
            jar = aiohttp.DummyCookieJar()
            async with aiohttp.ClientSession(auto_decompress=False, cookie_jar=jar) as session:
                at = f"127.0.0.1:{sock.getsockname()[1]}"
                yield Lab(at, fake, sandbox.id, session, server.server_state.connections)
        finally:
            server.should_exit = True
            await serving
            await fake.close()


def through(port: int) -> Callable[[ByteStream], Awaitable[None]]:
    """What answers on a fake sandbox's port: a server on this machine."""

    async def serve(stream: ByteStream) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def out() -> None:
            while data := await reader.read(256 << 10):
                await stream.write(data)
            await stream.write_eof()

        async def into() -> None:
            try:
                while data := await stream.read():
                    writer.write(data)
                    await writer.drain()
                writer.write_eof()
            except Unavailable:
                writer.transport.abort()  # the other end was closed

        try:
            await asyncio.gather(out(), into())
        except OSError:
            pass
        finally:
            writer.transport.abort()

    return serve


async def answer_handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Opens a WebSocket as a server does. What comes then is up to the caller."""
    request = await reader.readuntil(b"\r\n\r\n")
    key = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")).split(b": ")[1]
    accept = accept_key(key.decode())
    head = f"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    writer.write(head.encode())
