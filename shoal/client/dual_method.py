"""One async body with two ways to call it: `f(...)` blocks, `await f.aio(...)` does not.

The blocking form runs the coroutine on a background event loop, whose daemon thread starts on first use and serves all
threads of the process. The `.aio` form runs in the caller's own loop, without a thread in between.

    @dual_method      a method
    @dual_function    a function, or a static method (with `@staticmethod` beneath)
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import functools
import inspect
import os
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from shoal.model.call_context import loaded_api
from shoal.model.errors import FailedPrecondition
from shoal.model.tracing import below

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
R_co = TypeVar("R_co", covariant=True)

_UNDO_S = 10.0
"""Seconds that an interrupted call may take to undo what it began."""

_SIGNALS_S = 1.0
"""How late a waiting call may notice a signal that came just as it began to wait: such a one does not wake it."""

_EXIT_S = 5.0
"""Seconds that the exit of the process may wait for connections to close."""

_ENDING = "the process is ending"


class DualCall(Generic[P, R_co]):
    # A call in both forms; `aio` returns the coroutine. Not a docstring, since each object carries its body's.

    __slots__ = ("__doc__", "aio")
    aio: Callable[P, Coroutine[Any, Any, R_co]]

    def __init__(self, function: Callable[P, Coroutine[Any, Any, R_co]]) -> None:
        self.aio = function
        self.__doc__ = function.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        return block_on(self.aio(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        # Name and signature are the body's, for `help()` and for editors that look at run time.
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
        return DualCall(MethodType(_followed(self._function, owner), instance))

    def __call__(self, instance: S, *args: P.args, **kwargs: P.kwargs) -> R:
        return block_on(_followed(self._function, type(instance))(instance, *args, **kwargs))


def dual_function(function: Callable[P, Coroutine[Any, Any, R]]) -> DualCall[P, R]:
    """Makes an `async def` function callable in both forms."""
    return DualCall(function)


def _followed(
    function: Callable[P, Coroutine[Any, Any, R]], owner: type[Any] | None = None
) -> Callable[P, Coroutine[Any, Any, R]]:
    """The function; where the program traces with OpenTelemetry, as a span of the one under way. `owner`: the class of
    a method's object, which may have it of another."""
    api = loaded_api()
    if api is None or not api.get_current_span().is_recording():
        return function
    name = function.__qualname__ if owner is None else f"{owner.__name__}.{function.__name__}"

    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with below(name):
            return await function(*args, **kwargs)

    call.__name__, call.__qualname__, call.__doc__ = function.__name__, name, function.__doc__
    return call


def block_on(coroutine: Coroutine[Any, Any, R]) -> R:
    """Runs `coroutine` on the background loop and returns its result.

    An interrupt (Ctrl-C) cancels it, waits until it has undone what it began, and then reaches the caller.
    """
    background = _home.background or _home.start()
    if asyncio._get_running_loop() is not None:
        _home.check_loop(coroutine)
    call = _Call(coroutine)
    try:
        # Inside `try`, since an interrupt right after it would leave a call running that nobody waits for.
        background.loop.call_soon_threadsafe(call.start, background.loop, context=contextvars.copy_context())
        while not call.ended.acquire(timeout=_SIGNALS_S):
            pass
    except BaseException:
        if not call.over:  # else it had just ended, and nothing would wake this thread again
            background.loop.call_soon_threadsafe(call.cancel)
            call.ended.acquire(timeout=_UNDO_S)
        raise
    if call.error is not None:
        try:
            raise call.error
        finally:
            call.error = None  # breaks the cycle of error, traceback and frame
    return call.value


def _name_of(coroutine: Coroutine[Any, Any, Any]) -> str:
    """The call as its caller wrote it: a method by its object's class, which may have it of another."""
    name: str = getattr(coroutine, "__qualname__", "the call")
    owner = inspect.getcoroutinelocals(coroutine).get("self") if inspect.iscoroutine(coroutine) else None
    return name if owner is None else f"{type(owner).__name__}.{name.rpartition('.')[2]}"


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop that blocking calls run on, for work that must go on whatever the caller's own threads and loops do."""
    return (_home.background or _home.start()).loop


def is_background_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether `loop` is the background loop, and runs."""
    return _home.background is not None and _home.background.loop is loop


def at_exit(close: Callable[[], Awaitable[None]]) -> None:
    """Runs `close` on the background loop when the process exits, if that loop was ever used."""
    _home.closers.append(close)


class _Call(Generic[R]):
    """One blocking call: a task on the background loop, and the lock that its caller waits on.

    A lock, because a `concurrent.futures` future costs three times as much as all the rest of the call.
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
        if self.task is None:  # interrupted before the loop started it
            self.coroutine.close()
            self._end()
            return
        # After its first step: a task cancelled earlier never enters `_drive`, and would wake nobody.
        self.task.get_loop().call_soon(self.task.cancel)

    async def _drive(self) -> None:
        try:
            self.value = await self.coroutine
        except BaseException as error:  # noqa: BLE001  # any error belongs to the caller
            if error.args == (_ENDING,):
                return  # the daemon thread that waits here ends silently with the process
            self.error = error
        self._end()

    def _end(self) -> None:
        self.over = True
        self.ended.release()


class _Background:
    """The background event loop and its thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="shoal", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def stop(self, closers: list[Callable[[], Awaitable[None]]]) -> None:
        """Runs the closers, cancels the tasks that are left, and ends the thread, within `_EXIT_S`."""
        stopping = asyncio.run_coroutine_threadsafe(self._wind_up(closers), self.loop)
        try:
            stopping.result(_EXIT_S)
        except Exception:  # noqa: BLE001  # the process exits; nobody is left to tell
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
        # Closes the connections of clients that nobody has closed.
        await self.loop.shutdown_asyncgens()


class _Home:
    """The process's background loop, if it has one."""

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
        """In a forked child, where the thread is gone and the loop shares the parent's sockets: neither use nor close
        it.
        """
        if self.background is not None:
            self.left_behind.append(self.background)  # kept from the garbage collector, which would close it
        self.background = None
        self.starting = threading.Lock()

    def check_loop(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Warns a caller that is about to block its own event loop: notebooks do so on purpose, others hardly ever."""
        name = _name_of(coroutine)
        if self.background is not None and threading.current_thread() is self.background.thread:
            coroutine.close()
            raise FailedPrecondition(
                f"{name}() would wait for itself, on Shoal's own event loop; use `await {name}.aio(...)`",
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
