"""What sends the agent's frames: the transport of a socket, or anything with the same methods."""

from __future__ import annotations

from typing import Protocol


class FrameSender(Protocol):
    """The sending half of a byte stream, as `asyncio.Transport` has it. No call blocks."""

    def write(self, data: bytes | memoryview) -> None:
        """Sends `data`, in order."""

    def close(self) -> None:
        """Sends what is buffered, and closes. May be called again."""

    def abort(self) -> None:
        """Closes at once. May be called again."""
