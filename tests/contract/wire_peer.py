"""A relay and agent that do what a test tells them to: right, wrong or never-ending."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from shoal.wire.connection import Connection
from shoal.wire.frames import Decoder, Frame, Kind, encode

Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The other side of one connection, frame by frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._decoder = Decoder()
        self._frames: list[Frame] = []

    async def receive(self) -> Frame:
        while not self._frames:
            data = await self.reader.read(65536)
            if not data:
                raise ConnectionResetError
            self._frames = self._decoder.feed(data)
        return self._frames.pop(0)

    async def opened(self) -> tuple[int, dict[str, Any]]:
        """The next OPEN's stream and request; other frames before it are dropped."""
        while (frame := await self.receive()).kind is not Kind.OPEN:
            pass
        return frame.stream, json.loads(frame.payload)

    async def send(self, kind: Kind, stream: int, payload: bytes | dict[str, Any] = b"") -> None:
        await self.raw(encode(kind, stream, payload if isinstance(payload, bytes) else json.dumps(payload).encode()))

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def admit(self) -> None:
        assert (await self.receive()).kind is Kind.HELLO
        await self.send(Kind.HELLO, 0, {"v": 1, "ok": True})


@asynccontextmanager
async def serving(script: Script, *, admit: bool = True) -> AsyncIterator[str]:
    """The address of a server that runs `script` for each connection. A script's failed assertion fails the test."""
    failures: list[BaseException] = []
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer = Peer(reader, writer)
        try:
            if admit:
                await peer.admit()
            await script(peer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        except AssertionError as error:
            failures.append(error)
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tuple(tasks), timeout=5)
        await server.wait_closed()
    if failures:
        raise failures[0]


@asynccontextmanager
async def connected(script: Script) -> AsyncIterator[Connection]:
    """A connection to a peer that admits it and then runs `script`."""
    async with serving(script) as address:
        connection = await Connection.open(address, "token")
        try:
            yield connection
        finally:
            connection.close()
            await connection.wait_closed()


RUN = {"id": "p-1", "exit": 0, "timed_out": False, "truncated": False, "duration_us": 1}


def answers(*frames: tuple[Kind, bytes | dict[str, Any]]) -> Script:
    """A peer that answers the first request with these frames and then waits."""

    async def script(peer: Peer) -> None:
        stream, _ = await peer.opened()
        for kind, payload in frames:
            await peer.send(kind, stream, payload)
        await peer.reader.read()

    return script
