"""What carries the agent's frames: a socket's transport, or something that can do the same three things."""

from __future__ import annotations

from typing import Protocol


class Carrier(Protocol):
    """The sending half of a byte stream, as `asyncio.Transport` has it. No call blocks."""

    def write(self, data: bytes | memoryview) -> None:
        """Takes `data` over, to be sent in order."""

    def close(self) -> None:
        """Sends what it has taken over, and ends. Again is harmless."""

    def abort(self) -> None:
        """Ends at once. Again is harmless."""
