"""An engine's bounded threads, and work in them that is undone when its caller goes away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from shoal.model import tasks
from shoal.model.errors import FailedPrecondition

T = TypeVar("T")


class EngineThreads:
    """Pools of threads by name, so that a query never waits behind a pull. `sizes`: threads in each."""

    def __init__(self, engine: str, sizes: Mapping[str, int]) -> None:
        self._pools = {
            name: ThreadPoolExecutor(size, thread_name_prefix=f"shoal-{engine}-{name}") for name, size in sizes.items()
        }
        self._closed = False

    async def run(self, pool: str, body: Callable[[], T]) -> T:
        """The result of a blocking body. `FailedPrecondition` once closed."""
        if self._closed:
            raise not_open()
        return await asyncio.get_running_loop().run_in_executor(self._pools[pool], body)

    async def undoable(
        self, pool: str, begin: Callable[[threading.Event], T], undo: Callable[[], Coroutine[Any, Any, None]]
    ) -> T:
        """The result of a blocking body; undone if the caller is cancelled, once the body has ended: it is told by the
        event. A body that fails has undone itself."""
        abandoned = threading.Event()
        work = tasks.shared(self.run(pool, lambda: begin(abandoned)), "engine start")
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            abandoned.set()
            await _finish(_undo(work, undo))
            raise

    def close(self) -> None:
        """Waits for what runs; what has not begun is dropped. Idempotent. Blocks."""
        self._closed = True
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)


def not_open() -> FailedPrecondition:
    return FailedPrecondition("the engine is not open; call `open` first", state="closed")


async def _undo(work: asyncio.Future[T], undo: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await asyncio.wait([work])
    if not work.cancelled() and work.exception() is None:
        await undo()


async def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Awaits `work` to its end, however often the waiting task is cancelled."""
    task = tasks.shared(work, "undo start")
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                return
