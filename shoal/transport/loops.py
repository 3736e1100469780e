"""Objects that belong to one event loop each and end with it."""

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
    """Whether the running task itself is being cancelled, not only something that it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class PerLoop(Generic[T]):
    """One object for each event loop that asks for one. `make` makes it in that loop; `end` ends it there, when the
    loop ends or when this object is no longer referenced. Neither function may reference this object."""

    def __init__(self, make: Callable[[], T], end: Callable[[T], Awaitable[None]]) -> None:
        self._make = make
        self._end = end
        self._held: _Held[T] = {}
        # Keeps the objects alive until then: collected together with this, they would warn that they were not closed.
        weakref.finalize(self, _end_all, self._held).atexit = False

    def __len__(self) -> int:
        return len(self._held)

    def peek(self) -> T | None:
        """The running loop's object, if it has one."""
        held = self._held.get(asyncio.get_running_loop())
        return None if held is None else held[0]

    async def get(self) -> T:
        """The running loop's object; a new one if it has none."""
        held = self._held.get(asyncio.get_running_loop())
        return held[0] if held is not None else await self._begin()

    async def close(self) -> None:
        """Ends the running loop's object. May be called again; `get` then makes a new one."""
        held = self._held.pop(asyncio.get_running_loop(), None)
        if held is not None:
            await held[1].aclose()

    async def _begin(self) -> T:
        loop = asyncio.get_running_loop()
        for other in list(self._held):
            if other.is_closed():
                self._held.pop(other, None)  # it was closed without closing its generators
        made = self._make()
        # When a loop ends, only its async generators are told: `asyncio.run` closes them.
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
    """Ends all objects, called from any thread by the garbage collector."""
    for loop, (_, guard) in list(held.items()):
        try:
            loop.call_soon_threadsafe(_end, loop, guard)
        except RuntimeError:
            pass  # the loop is closed, and its objects with it


def _end(loop: asyncio.AbstractEventLoop, guard: _Guard) -> None:
    task = loop.create_task(_close(guard))
    _ending.add(task)
    task.add_done_callback(_ending.discard)


async def _close(guard: _Guard) -> None:
    await guard.aclose()


_ending: set[asyncio.Task[None]] = set()
"""Keeps references: a loop references its tasks only weakly."""
