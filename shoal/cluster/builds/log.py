"""A build's log, for those who follow it."""

from __future__ import annotations

import asyncio
from collections import deque

MOST = 4 << 20
"""Characters that are kept, the newest."""

PIECE = 256 << 10
"""Characters of one read, at most."""


class Log:
    """Text by offset, in characters. Belongs to one event loop."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._pieces: deque[tuple[int, str]] = deque()
        self._end = 0
        self._ended = False
        self._changed = asyncio.Event()

    def write(self, text: str) -> None:
        """Adds text."""
        if not text:
            return
        self._pieces.append((self._end, text))
        self._end += len(text)
        while len(self._pieces) > 1 and self._end - self._pieces[1][0] >= self._most:
            self._pieces.popleft()
        self._wake()

    def end(self) -> None:
        """Nothing comes any more."""
        self._ended = True
        self._wake()

    @property
    def offset(self) -> int:
        """Of what is written next."""
        return self._end

    def tail(self, most: int, since: int = 0) -> str:
        """The last characters, none of them from before the offset `since`."""
        most = min(most, self._end - since)
        return "".join(text for _, text in self._pieces)[-most:] if most > 0 else ""

    def read(self, offset: int) -> tuple[str, int]:
        """Text from an offset on, and where the next part begins. What is not kept any more is said to be missing."""
        found: list[str] = []
        size = 0
        if self._pieces and offset < self._pieces[0][0]:
            found.append(f"[{self._pieces[0][0] - offset} characters are not kept]\n")
            offset = self._pieces[0][0]
        for start, text in self._pieces:
            if start + len(text) <= offset:
                continue
            part = text[max(0, offset - start) :][: PIECE - size]
            found.append(part)
            size += len(part)
            offset += len(part)
            if size == PIECE:
                break
        return "".join(found), offset

    async def wait(self, offset: int, seconds: float) -> None:
        """Until there is text from the offset on, or the end, or the seconds are over."""
        try:
            async with asyncio.timeout(seconds):
                while self._end <= offset and not self._ended:
                    await self._changed.wait()
        except TimeoutError:
            pass

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
