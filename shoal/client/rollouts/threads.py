"""Plain functions in daemon threads, awaited by an event loop.

Not `asyncio.to_thread`: its pool is bounded by the number of cores, and the exit of the process waits for its threads,
so that one that hangs would keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Calls `function` in a thread of its own. If the caller is cancelled, it goes on, and its result is lost."""
    worker = Worker()
    try:
        return await worker.call(function, *args)
    finally:
        worker.stop()


class Worker:
    """One thread that makes one call after another. The thread starts with the first call and ends after `stop`."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Calls `function` in the thread and returns its result, or raises its error."""
        call = _Call(function, args)
        self._calls.put(call)
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._calls,), name="shoal map", daemon=True)
            self._thread.start()
        result: T = await call.future
        return result

    def stop(self) -> None:
        """Ends the thread after the call that it is in."""
        self._calls.put(None)


class _Call:
    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._function = function
        self._args = args
        self.future: asyncio.Future[Any] = self._loop.create_future()

    def make(self) -> None:
        try:
            self._tell(self._context.run(self._function, *self._args), None)
        except StopIteration as error:  # a future takes none; a coroutine makes the same of it
            wrapped = RuntimeError("the function raised StopIteration")
            wrapped.__cause__ = error
            self._tell(None, wrapped)
        except BaseException as error:  # noqa: BLE001  # any error belongs to the caller
            self._tell(None, error)

    def _tell(self, value: Any, error: BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, value, error)
        except RuntimeError:
            pass  # the loop is closed: nobody waits

    def _settle(self, value: Any, error: BaseException | None) -> None:
        if self.future.done():
            return  # the caller was cancelled
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)


def _work(calls: queue.SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        call.make()
