"""A WebSocket client that breaks every rule it is told to: frames by hand over a plain connection."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9
PATIENCE_S = 20.0


def frame(opcode: int, data: bytes, *, final: bool = True) -> bytes:
    """A client's frame, masked as it must be."""
    size = len(data)
    head = bytes((opcode | 0x80 * final,))
    if size < 126:
        head += bytes((0x80 | size,))
    elif size < 1 << 16:
        head += bytes((0x80 | 126,)) + struct.pack("!H", size)
    else:
        head += bytes((0x80 | 127,)) + struct.pack("!Q", size)
    return head + bytes(4) + data


class RawSocket:
    """One connection. `reader` gives what the server sends, as it comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
        await asyncio.wait_for(self.writer.drain(), PATIENCE_S)

    async def message(self) -> tuple[int, bytes]:
        """The server's next frame: its opcode and its bytes."""
        return await asyncio.wait_for(self._message(), PATIENCE_S)

    async def _message(self) -> tuple[int, bytes]:
        first, second = await self.reader.readexactly(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
        return first & 0x0F, await self.reader.readexactly(size)

    async def close_code(self) -> int:
        """The code that the server closes with, whatever it says before."""
        while True:
            opcode, data = await self.message()
            if opcode == CLOSE:
                return int.from_bytes(data[:2], "big")

    def cut(self) -> None:
        """Gone at once: the server gets a reset, unless it has closed the connection itself."""
        sock = self.writer.get_extra_info("socket")
        if sock.fileno() != -1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@asynccontextmanager
async def connection(url: str, head: str, *, receive_buffer: int | None = None) -> AsyncIterator[RawSocket]:
    """A plain connection on which `head`, lines of a request, was sent.

    `receive_buffer`: bytes that the kernel keeps for us.
    """
    parts = urlsplit(url)
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
    # A stream reader takes what there is until it holds twice its limit: a small one makes a client that does not read.
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 14)
    try:
        writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        yield RawSocket(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def websocket(url: str, token: str, *, receive_buffer: int | None = None) -> AsyncIterator[RawSocket]:
    """A WebSocket at an http URL, its handshake done."""
    parts = urlsplit(url)
    head = (
        f"GET {parts.path} HTTP/1.1\nHost: {parts.netloc}\nUpgrade: websocket\nConnection: Upgrade\n"
        f"Sec-WebSocket-Version: 13\nSec-WebSocket-Key: {os.urandom(12).hex()[:22]}==\nAuthorization: Bearer {token}"
    )
    async with connection(url, head, receive_buffer=receive_buffer) as made:
        answer = await asyncio.wait_for(made.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        assert b" 101 " in answer.split(b"\r\n")[0], answer
        yield made
