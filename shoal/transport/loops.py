"""Things that belong to one event loop each, and go with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One thing for each event loop that asks: made by `make` in that loop, ended there by `end` when the loop is."""

    def __init__(self, make: Callable[[], T], end: Callable[[T], Awaitable[None]]) -> None:
        self._make = make
        self._end = end
        self._of: dict[asyncio.AbstractEventLoop, tuple[T, AsyncGenerator[None, None]]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def peek(self) -> T | None:
        """The running loop's, where it has one."""
        held = self._of.get(asyncio.get_running_loop())
        return None if held is None else held[0]

    async def get(self) -> T:
        """The running loop's; a new one where it has none."""
        held = self._of.get(asyncio.get_running_loop())
        return held[0] if held is not None else await self._begin()

    async def close(self) -> None:
        """Ends the running loop's. Again is harmless; `get` makes a new one."""
        held = self._of.pop(asyncio.get_running_loop(), None)
        if held is not None:
            await held[1].aclose()

    async def _begin(self) -> T:
        loop = asyncio.get_running_loop()
        for other in list(self._of):
            if other.is_closed():
                self._of.pop(other, None)  # it was closed without a word to its generators
        made = self._make()
        # A loop tells nobody that it ends, except the generators that it has seen: `asyncio.run` closes them.
        guard = self._guard(loop, made)
        self._of[loop] = made, guard
        await anext(guard)
        return made

    async def _guard(self, loop: asyncio.AbstractEventLoop, made: T) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            held = self._of.get(loop)
            if held is not None and held[0] is made:
                del self._of[loop]
            await self._end(made)
