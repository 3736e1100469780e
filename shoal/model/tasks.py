"""Background tasks. Each has a name for the log, and a consequence if it fails in a way that nobody foresaw.

    supervise   work that nobody awaits: it is run again after a pause, or `failed` is told
    repeat      a loop's body, again and again: the same
    shared      work whose callers get its result or its error; it goes on though a caller is cancelled

The exception of a task that is merely created is lost: `tests/unit/test_tasks.py` finds such tasks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from shoal.model import call_context
from shoal.model.errors import ShoalError

log = logging.getLogger("shoal.tasks")

T = TypeVar("T")

PAUSES_S = (0.2, 5.0)
"""Seconds before the next attempt: after the first failure, and at most; they double."""

failures: Counter[str] = Counter()
"""How often the tasks of each name have failed in this process."""

_running: set[asyncio.Task[Any]] = set()
"""A loop itself references its tasks only weakly."""


def supervise(
    work: Callable[[], Awaitable[None]],
    name: str,
    *,
    attempts: int | None = None,
    failed: Callable[[Exception], None] | None = None,
    pauses_s: tuple[float, float] | None = None,
) -> asyncio.Task[None]:
    """Runs `work` until it returns. Whenever it raises, that is logged and it is run again after a pause; once it has
    raised `attempts` times in a row (None: no limit), `failed` is called with the last error instead.

    In a row: each time sooner than the longest pause.
    """
    return _start(_supervised(work, name, attempts, failed, pauses_s or PAUSES_S), name)


def repeat(every_s: float, body: Callable[[], Awaitable[None]], name: str) -> asyncio.Task[None]:
    """Runs `body` for ever, `every_s` after it last returned; after failures sooner at first."""

    async def turns() -> None:
        while True:
            await body()
            await asyncio.sleep(every_s)

    first_s, longest_s = PAUSES_S
    return supervise(turns, name, pauses_s=(first_s, max(every_s, longest_s)))


def shared(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Runs `work` for those who await the task, by `asyncio.shield`. The log has what fails other than by a
    `ShoalError`, for all of them may have been cancelled."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    _running.add(task)
    task.add_done_callback(_over)
    return task


async def stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancels the tasks and waits until they have ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _start(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    task = asyncio.get_running_loop().create_task(work, name=name)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


async def _supervised(
    work: Callable[[], Awaitable[None]],
    name: str,
    attempts: int | None,
    failed: Callable[[Exception], None] | None,
    pauses_s: tuple[float, float],
) -> None:
    call_context.leave()
    loop = asyncio.get_running_loop()
    first_s, longest_s = pauses_s
    in_a_row, pause_s = 0, first_s
    while True:
        began = loop.time()
        try:
            await work()
            return
        except (ShoalError, OSError) as error:  # a part that does not answer, say
            log.warning("%s: %s", name, error)
            last: Exception = error
        except Exception as error:  # a defect: whatever it is, this task must not end unseen
            log.exception("%s", name)
            last = error
        failures[name] += 1
        if loop.time() - began > longest_s:
            in_a_row, pause_s = 0, first_s
        in_a_row += 1
        if attempts is not None and in_a_row >= attempts:
            if failed is not None:
                failed(last)
            return
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, longest_s)


def _over(task: asyncio.Task[Any]) -> None:
    """One callback: there are several such tasks in each sandbox's life."""
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, ShoalError):
        failures[task.get_name()] += 1
        log.warning("%s: %r", task.get_name(), error)
