"""A raw byte stream to something in a sandbox, whatever carries it: a socket to the relay, or a WebSocket to the API."""

from __future__ import annotations

from abc import ABC, abstractmethod


class ByteStream(ABC):
    """Bytes both ways, each direction with an end of its own. One reader and one writer at a time; belongs to the loop that opened it.

    All calls raise `Unavailable` once the stream is broken.
    """

    @abstractmethod
    async def read(self) -> bytes:
        """Some bytes, 256 KiB at the most; `b""` at the end of the other side's."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Sends `data`; returns once there is room for more, so a slow reader slows the writer and no memory fills."""

    @abstractmethod
    async def write_eof(self) -> None:
        """No more from this side. The other direction lives on."""

    @abstractmethod
    async def close(self) -> None:
        """Ends both directions at once. Again is harmless."""
