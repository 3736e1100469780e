"""One async body, two ways to call it: `f(...)` blocks, `await f.aio(...)` does not.

The blocking form runs the coroutine on one background event loop, in a daemon thread that is started on first use and
shared by all threads of the process. The `.aio` form runs in the caller's own loop: there is no thread between them.

    @dual_method      a method
    @dual_function    a function, or a static method (with `@staticmethod` beneath)
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import functools
import os
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from shoal.model.errors import FailedPrecondition

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
R_co = TypeVar("R_co", covariant=True)

_UNDO_S = 10.0
"""How long an interrupted call may take to undo what it began."""

_EXIT_S = 5.0
"""How long the process's end may wait for connections to close."""


_ENDING = "the process is ending"


class DualCall(Generic[P, R_co]):
    # A call in both forms; `aio` gives the coroutine. This is no docstring: each object carries that of its body.

    __slots__ = ("__doc__", "aio")
    aio: Callable[P, Coroutine[Any, Any, R_co]]

    def __init__(self, function: Callable[P, Coroutine[Any, Any, R_co]]) -> None:
        self.aio = function
        self.__doc__ = function.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        return block_on(self.aio(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        # Name, docstring and signature are those of the one body, for `help()` and editors that look at run time.
        if name in ("__name__", "__qualname__", "__module__", "__wrapped__", "__annotations__"):
            return self.aio if name == "__wrapped__" else getattr(self.aio, name)
        raise AttributeError(name)

    def __repr__(self) -> str:
        return f"<{getattr(self.aio, '__qualname__', self.aio)}, and its .aio>"


class dual_method(Generic[S, P, R]):  # noqa: N801  # a decorator
    """Makes an `async def` method callable in both forms."""

    def __init__(self, function: Callable[Concatenate[S, P], Coroutine[Any, Any, R]]) -> None:
        self._function = function
        functools.update_wrapper(self, function)

    @overload
    def __get__(self, instance: None, owner: type[S]) -> dual_method[S, P, R]: ...
    @overload
    def __get__(self, instance: S, owner: type[S]) -> DualCall[P, R]: ...
    def __get__(self, instance: S | None, owner: type[S]) -> dual_method[S, P, R] | DualCall[P, R]:
        if instance is None:
            return self
        return DualCall(MethodType(self._function, instance))

    def __call__(self, instance: S, *args: P.args, **kwargs: P.kwargs) -> R:
        return block_on(self._function(instance, *args, **kwargs))


def dual_function(function: Callable[P, Coroutine[Any, Any, R]]) -> DualCall[P, R]:
    """Makes an `async def` function callable in both forms."""
    return DualCall(function)


def block_on(coroutine: Coroutine[Any, Any, R]) -> R:
    """Runs `coroutine` on the background loop and returns its result. An interrupt (Ctrl-C) cancels it, waits until it has
    undone what it began, and goes on to the caller."""
    background = _home.background or _home.start()
    if asyncio._get_running_loop() is not None:
        _home.check_loop(coroutine)
    call = _Call(coroutine)
    try:
        # In here: an interrupt right after it would leave a call running that nobody waits for.
        background.loop.call_soon_threadsafe(call.start, background.loop, context=contextvars.copy_context())
        call.ended.acquire()
    except BaseException:
        if not call.over:  # else the interrupt came with its end, and nobody would wake this thread a second time
            background.loop.call_soon_threadsafe(call.cancel)
            call.ended.acquire(timeout=_UNDO_S)
        raise
    if call.error is not None:
        try:
            raise call.error
        finally:
            call.error = None  # the traceback would hold the frame that holds the error
    return call.value


def at_exit(close: Callable[[], Awaitable[None]]) -> None:
    """Has `close` run on the background loop, where there is one, when the process ends."""
    _home.closers.append(close)


class _Call(Generic[R]):
    """One blocking call: a task on the background loop, and the lock that its caller waits at.

    A lock, because a future of `concurrent.futures` costs three times as much as all the rest of the way.
    """

    __slots__ = ("coroutine", "ended", "error", "over", "task", "value")
    value: R

    def __init__(self, coroutine: Coroutine[Any, Any, R]) -> None:
        self.coroutine = coroutine
        self.error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self.over = False
        self.ended = threading.Lock()
        self.ended.acquire()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self.task = loop.create_task(self._drive())

    def cancel(self) -> None:
        if self.task is None:  # the interrupt came before it was handed over
            self.coroutine.close()
            self._end()
            return
        # Behind its first step: a task that is cancelled before it never enters `_drive`, and nobody would be woken.
        self.task.get_loop().call_soon(self.task.cancel)

    async def _drive(self) -> None:
        try:
            self.value = await self.coroutine
        except BaseException as error:  # noqa: BLE001  # whatever it is, it belongs to the caller
            if error.args == (_ENDING,):
                return  # a daemon thread that waits here ends with the process, without a word
            self.error = error
        self._end()

    def _end(self) -> None:
        self.over = True
        self.ended.release()


class _Background:
    """The loop's thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="shoal", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def stop(self, closers: list[Callable[[], Awaitable[None]]]) -> None:
        """Closes what was registered, cancels what still runs, and ends the thread: within `_EXIT_S`."""
        stopping = asyncio.run_coroutine_threadsafe(self._wind_up(closers), self.loop)
        try:
            stopping.result(_EXIT_S)
        except Exception:  # noqa: BLE001  # the process ends; there is nobody left to tell
            pass
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(_EXIT_S)
        if not self.thread.is_alive():
            self.loop.close()

    async def _wind_up(self, closers: list[Callable[[], Awaitable[None]]]) -> None:
        await asyncio.gather(*(close() for close in closers), return_exceptions=True)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel(_ENDING)
        await asyncio.gather(*others, return_exceptions=True)
        # What lives with the loop goes with it: the connections of clients that nobody has closed.
        await self.loop.shutdown_asyncgens()


class _Home:
    """Where the process keeps its background loop."""

    def __init__(self) -> None:
        self.background: _Background | None = None
        self.closers: list[Callable[[], Awaitable[None]]] = []
        self.starting = threading.Lock()
        self.left_behind: list[_Background] = []
        self.warned = False

    def start(self) -> _Background:
        with self.starting:
            if self.background is None:
                self.background = _Background()
            return self.background

    def stop(self) -> None:
        background, self.background = self.background, None
        if background is not None:
            background.stop(self.closers)

    def forget(self) -> None:
        """In a forked child: the thread is not there, and its loop shares the parent's sockets. It must be neither used nor
        closed, and so is kept from the garbage collector."""
        if self.background is not None:
            self.left_behind.append(self.background)
        self.background = None
        self.starting = threading.Lock()

    def check_loop(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """The caller is about to block the loop that it stands in: legal, as notebooks do it, but hardly ever meant."""
        name = getattr(coroutine, "__qualname__", "the call")
        if self.background is not None and threading.current_thread() is self.background.thread:
            coroutine.close()
            raise FailedPrecondition(
                f"{name}() would wait for itself: this code runs on Shoal's own event loop; use `await {name}.aio(...)`",
                state="in_event_loop",
            )
        if self.warned or "ipykernel" in sys.modules:
            return
        self.warned = True
        try:
            message = f"{name}() blocks the running event loop; use `await {name}.aio(...)`"
            warnings.warn(message, RuntimeWarning, stacklevel=4)
        except RuntimeWarning:
            coroutine.close()
            raise


_home = _Home()
os.register_at_fork(after_in_child=_home.forget)
atexit.register(_home.stop)
