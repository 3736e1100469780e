"""A raw byte stream into a sandbox, over a socket to the relay or a WebSocket to the API."""

from __future__ import annotations

from abc import ABC, abstractmethod


class ByteStream(ABC):
    """Bytes in two directions, which end separately. One reader and one writer at a time; belongs to its event loop.

    All calls raise `Unavailable` once the stream is broken.
    """

    @abstractmethod
    async def read(self) -> bytes:
        """The next bytes, at most 256 KiB; `b""` at the end."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Sends `data`; returns once there is room for more, so that a slow reader slows the writer."""

    @abstractmethod
    async def write_eof(self) -> None:
        """Ends this direction; the other stays open."""

    @abstractmethod
    async def close(self) -> None:
        """Closes both directions at once. May be called again."""
