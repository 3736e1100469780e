"""Blocking calls that may never return, such as those into a mount that hangs.

Each has a thread of its own, which nobody waits for longer than the deadline: the pool of the loop would fill up with
threads that hang, and the node actor with it. A thread that hangs ends with its mount.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from shoal.model.errors import Unavailable

T = TypeVar("T")


async def within(seconds: float, what: str, body: Callable[[], T]) -> T:
    """What `body` returns or raises; `Unavailable` where it takes longer, while it goes on."""
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.shield(begin(body))
    except TimeoutError:
        raise Unavailable(f"{what} took longer than {seconds:g} s") from None


def begin(body: Callable[[], T]) -> asyncio.Future[T]:
    """Runs `body` in a thread of its own, which may share nothing with others: it is not used again."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()
    outcome.add_done_callback(_note_seen)

    def settle(value: T | None, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = body()
        except BaseException as raised:  # noqa: BLE001 - it is the caller's
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name="shoal-mount", daemon=True).start()
    return outcome


def _note_seen(outcome: asyncio.Future[T]) -> None:
    """An error for which nobody waits any more is not to be logged as lost."""
    if not outcome.cancelled():
        outcome.exception()
