"""Things that belong to one event loop each, and go with it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_Guard = AsyncGenerator[None, None]
_Held = dict[asyncio.AbstractEventLoop, tuple[T, _Guard]]


CLOSED = "the connections were closed meanwhile"


def being_cancelled() -> bool:
    """Whether it is the running task itself that is being cancelled, not only something that it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class PerLoop(Generic[T]):
    """One thing for each event loop that asks: made by `make` in that loop, ended there by `end` when the loop is, or when nobody holds this
    any more. Neither function may hold it."""

    def __init__(self, make: Callable[[], T], end: Callable[[T], Awaitable[None]]) -> None:
        self._make = make
        self._end = end
        self._held: _Held[T] = {}
        # Holds what is held until then: as garbage along with this, it would complain of not having been ended.
        weakref.finalize(self, _end_all, self._held).atexit = False

    def __len__(self) -> int:
        return len(self._held)

    def peek(self) -> T | None:
        """The running loop's, where it has one."""
        held = self._held.get(asyncio.get_running_loop())
        return None if held is None else held[0]

    async def get(self) -> T:
        """The running loop's; a new one where it has none."""
        held = self._held.get(asyncio.get_running_loop())
        return held[0] if held is not None else await self._begin()

    async def close(self) -> None:
        """Ends the running loop's. Again is harmless; `get` makes a new one."""
        held = self._held.pop(asyncio.get_running_loop(), None)
        if held is not None:
            await held[1].aclose()

    async def _begin(self) -> T:
        loop = asyncio.get_running_loop()
        for other in list(self._held):
            if other.is_closed():
                self._held.pop(other, None)  # it was closed without a word to its generators
        made = self._make()
        # A loop tells nobody that it ends, except the generators that it has seen: `asyncio.run` closes them.
        guard = _guard(self._held, loop, made, self._end)
        self._held[loop] = made, guard
        await anext(guard)
        return made


async def _guard(
    held: _Held[T], loop: asyncio.AbstractEventLoop, made: T, end: Callable[[T], Awaitable[None]]
) -> _Guard:
    try:
        yield
    finally:
        if loop in held and held[loop][0] is made:
            del held[loop]
        await end(made)


def _end_all(held: _Held[T]) -> None:
    """In whatever thread the garbage is collected."""
    for loop, (_, guard) in list(held.items()):
        try:
            loop.call_soon_threadsafe(_end, loop, guard)
        except RuntimeError:
            pass  # it is closed, and what it held with it


def _end(loop: asyncio.AbstractEventLoop, guard: _Guard) -> None:
    task = loop.create_task(_close(guard))
    _ending.add(task)
    task.add_done_callback(_ending.discard)


async def _close(guard: _Guard) -> None:
    await guard.aclose()


_ending: set[asyncio.Task[None]] = set()
"""A loop holds its tasks only weakly."""
