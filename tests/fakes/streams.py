"""Byte streams in memory, and the two services that a fake sandbox has on its ports: an echo and a web page."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from shoal.model.errors import Unavailable
from shoal.wire.bytestream import ByteStream

CHUNK = 256 * 1024
_PIECES = 8  # that one direction holds before its writer waits

Serve = Callable[[ByteStream], Awaitable[None]]
"""What answers on a port: it is given its end of each connection, which is closed when it returns."""


def pair() -> tuple[ByteStream, ByteStream]:
    """Two ends of one stream, of one event loop."""
    there, back = _Pipe(), _Pipe()
    return _End(there, back), _End(back, there)


def connect(serve: Serve, tasks: set[asyncio.Task[None]]) -> ByteStream:
    """A stream whose other end `serve` has, as a task of `tasks` for as long as it runs."""
    ours, theirs = pair()

    async def run() -> None:
        try:
            await serve(theirs)
        except Unavailable:
            pass  # the client went away
        finally:
            await theirs.close()

    task = asyncio.get_running_loop().create_task(run())
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return ours


async def echo(stream: ByteStream) -> None:
    """Gives back what comes, until the other side's end."""
    while data := await stream.read():
        await stream.write(data)
    await stream.write_eof()


async def web(stream: ByteStream) -> None:
    """One HTTP answer: the request's first line and headers, as text."""
    request = b""
    while b"\r\n\r\n" not in request and len(request) < CHUNK:
        data = await stream.read()
        if not data:
            return
        request += data
    head = request.partition(b"\r\n\r\n")[0]
    await stream.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(head)
        + head
    )
    await stream.write_eof()


class _Pipe:
    """One direction."""

    def __init__(self) -> None:
        self.pieces: deque[bytes] = deque()
        self.ended = False
        self.broken = False
        self.changed = asyncio.Condition()

    async def put(self, data: bytes) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.pieces) < _PIECES or self.broken)
            if self.broken or self.ended:
                raise Unavailable("the stream is closed")
            self.pieces.append(data)
            self.changed.notify_all()

    async def get(self) -> bytes:
        async with self.changed:
            await self.changed.wait_for(lambda: self.pieces or self.ended or self.broken)
            if self.broken:
                raise Unavailable("the stream is closed")
            data = self.pieces.popleft() if self.pieces else b""
            self.changed.notify_all()
            return data

    async def end(self, *, broken: bool) -> None:
        async with self.changed:
            self.ended = True
            self.broken = self.broken or broken
            self.changed.notify_all()


class _End(ByteStream):
    def __init__(self, out: _Pipe, into: _Pipe) -> None:
        self._out = out
        self._into = into

    async def read(self) -> bytes:
        return await self._into.get()

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), CHUNK):
            await self._out.put(data[start : start + CHUNK])

    async def write_eof(self) -> None:
        await self._out.end(broken=False)

    async def close(self) -> None:
        # What was written before still arrives, as with a socket; what comes in is of no use to anybody any more.
        await self._out.end(broken=False)
        await self._into.end(broken=True)
