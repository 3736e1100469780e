"""A byte stream over a socket to the relay."""

from __future__ import annotations

import asyncio

from shoal.model.errors import Unavailable
from shoal.wire.bytestream import ByteStream

CHUNK = 256 << 10

_HIGH = 512 << 10
"""Bytes that may be buffered before a writer has to wait."""


class SocketStream(ByteStream):
    """A connection that `shoal.wire.dial` opened."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        writer.transport.set_write_buffer_limits(high=_HIGH)

    async def read(self) -> bytes:
        try:
            return await self._reader.read(CHUNK)
        except OSError as error:
            raise _broken(error) from None

    async def write(self, data: bytes) -> None:
        if self._writer.transport.is_closing():
            raise _broken(None)
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise _broken(error) from None

    async def write_eof(self) -> None:
        try:
            self._writer.write_eof()
            await self._writer.drain()
        except (OSError, RuntimeError) as error:  # uvloop: RuntimeError once the transport is closed
            raise _broken(error) from None

    async def close(self) -> None:
        self._writer.transport.abort()


def _broken(error: Exception | None) -> Unavailable:
    return Unavailable(f"the connection into the sandbox is broken: {error or 'closed by the other side'}")
