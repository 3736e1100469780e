"""Simulated time: an event loop in which waiting takes none."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Clock:
    """Seconds that pass only when everybody waits. `now`: seconds since the start; `epoch`: the unix time of that."""

    def __init__(self, epoch: float) -> None:
        self.now = 0.0
        self.epoch = epoch

    def time(self) -> float:
        return self.epoch + self.now

    def monotonic(self) -> float:
        return self.now


class _Waitless(selectors.SelectSelector):
    """Where the loop would wait, the clock goes on by as much."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits for somebody else: nothing will ever happen")
        self._clock.now += max(0.0, timeout)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    """Threads' work is done at once: no simulated time may pass meanwhile."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
            future.set_exception(error)
        return future


@contextmanager
def simulated(epoch: float = 1_700_000_000.0) -> Iterator[Clock]:
    """This process lives in simulated time: `time.time` and `time.monotonic` tell it. `time.perf_counter` stays real.

    Before the first import of what keeps `time.monotonic` as a default.
    """
    clock = Clock(epoch)
    real = time.time, time.monotonic
    time.time, time.monotonic = clock.time, clock.monotonic
    try:
        yield clock
    finally:
        time.time, time.monotonic = real


def run(clock: Clock, main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, in simulated time."""
    with asyncio.Runner(loop_factory=lambda: _Loop(_Waitless(clock))) as runner:
        return runner.run(main)
