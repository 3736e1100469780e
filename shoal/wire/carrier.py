"""The sending side of what carries the agent's frames: a socket's transport, or anything with these methods."""

from __future__ import annotations

from typing import Protocol


class Carrier(Protocol):
    """The sending half of a byte stream, as `asyncio.Transport` has it. No call blocks."""

    def write(self, data: bytes | memoryview) -> None:
        """Sends `data`, in order."""

    def close(self) -> None:
        """Sends what is buffered, and closes. May be called again."""

    def abort(self) -> None:
        """Closes at once. May be called again."""
