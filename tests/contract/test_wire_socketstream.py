"""Byte streams over sockets: half-closes, backpressure and broken connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from shoal.model.errors import Unavailable
from shoal.wire.socketstream import CHUNK, SocketStream

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def opened(port: int) -> SocketStream:
    return SocketStream(*await asyncio.open_connection("127.0.0.1", port, limit=CHUNK))


async def test_megabytes_both_ways_and_each_end_by_itself() -> None:
    async def back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write(b"the end")
        writer.close()

    data = bytes(range(256)) * (8 << 12)
    async with await asyncio.start_server(back, "127.0.0.1", 0) as server:
        stream = await opened(server.sockets[0].getsockname()[1])

        async def send() -> None:
            for start in range(0, len(data), 1 << 20):
                await stream.write(data[start : start + (1 << 20)])
            await stream.write_eof()

        sending = asyncio.create_task(send())
        came = bytearray()
        while chunk := await stream.read():
            assert len(chunk) <= CHUNK
            came += chunk
        await sending
        assert came == data + b"the end"
        await stream.close()
        await stream.close()
        with pytest.raises(Unavailable):
            await stream.write(b"x")


async def test_a_reader_that_does_not_read_stops_the_writer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stream = await opened(server.getsockname()[1])
        peer, _ = server.accept()
        written = 0

        async def write() -> None:
            nonlocal written
            while True:
                await stream.write(bytes(CHUNK))
                written += CHUNK

        writing = asyncio.create_task(write())
        before = -1
        while written != before:
            before = written
            await asyncio.sleep(0.2)
        assert written < 64 << 20
        assert not writing.done()
        peer.close()
        with pytest.raises(Unavailable):
            await writing
        await stream.close()
