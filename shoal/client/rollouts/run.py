"""One map under way: takes items in, calls the function for each in a sandbox, and hands outcomes out.

Each item has a task. `concurrency` + `ahead` items have a sandbox or wait for one, and `concurrency` of these run: so
the sandboxes of the next items are made while the current ones run. Outcomes wait for their taker; no item is begun
while `buffer` of them wait. So at most `concurrency` + `ahead` + `buffer` items are in memory, however many there are.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, Generic, TypeVar

from shoal.client.cluster import current
from shoal.client.rollouts.bar import Bar
from shoal.client.rollouts.options import Plan
from shoal.client.rollouts.outcome import Outcome
from shoal.client.rollouts.reporter import Reporter
from shoal.client.rollouts.source import Source
from shoal.client.rollouts.supply import Lent, Supply, WrongSpec
from shoal.client.rollouts.threads import in_thread
from shoal.model import tasks
from shoal.model.errors import DeadlineExceeded, InvalidRequest
from shoal.model.rollouts import RolloutState
from shoal.transport.loops import being_cancelled

T = TypeVar("T")
R = TypeVar("R")

_PAUSES_S = (0.2, 5.0)
"""Seconds before the next attempt of an item: the first time, and at most; they double."""

_STALE_S = 5.0
"""After so long a wait a sandbox is asked whether it still lives, before its item begins."""


class Run(Generic[T, R]):
    """The map's state. All but the constructor runs on the loop that takes the outcomes."""

    def __init__(self, function: Callable[[Any, T], Any], items: Iterable[T] | AsyncIterable[T], plan: Plan) -> None:
        if not callable(function):
            raise InvalidRequest(
                f"function: {function!r:.80} cannot be called; give a function of a sandbox and an item",
                field="function",
            )
        self._function = function
        self._in_thread = not _is_async(function)
        self._plan = plan
        self._source = Source(items)
        self._bar = Bar(self._source.total) if plan.progress else None
        self._reporter = Reporter(plan.name, self._source.total, lambda: len(self._items))
        self._end = RolloutState.STOPPED  # what it is reported as, unless it comes to an end of its own
        self._room = asyncio.Semaphore(plan.sandboxes + plan.buffer)
        self._sandboxes = asyncio.Semaphore(plan.sandboxes)
        self._running = asyncio.Semaphore(plan.concurrency)
        self._ready: dict[int, Outcome[T, R]] = {}
        self._next = 0
        self._changed = asyncio.Event()
        self._items: set[asyncio.Task[None]] = set()
        self._feeding: asyncio.Task[None] | None = None
        self._supply: Supply | None = None
        self._failure: BaseException | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop that it runs on, once it has begun."""
        self._source_error: BaseException | None = None

    async def next(self) -> Outcome[T, R] | None:
        """The next outcome; None at the end, when no sandbox is left.

        Raises what keeps the map from going on: a wrong spec, or the iterable's own error once the items before it are
        done.
        """
        if self._feeding is None:
            await self._start()
        while True:
            if self._failure is not None:
                self._end = RolloutState.FAILED
                raise self._failure
            if (outcome := self._take()) is not None:
                self._room.release()
                return outcome
            assert self._feeding is not None
            if self._feeding.done() and not self._items:
                if self._source_error is not None:
                    self._end = RolloutState.FAILED
                    raise self._source_error
                self._end = RolloutState.DONE
                return None
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Cancels what is under way and ends all sandboxes. May be called again."""
        going = [task for task in (self._feeding, *self._items) if task is not None and not task.done()]
        for task in going:
            if not task.cancelling():  # again would cut short what it undoes: a loop's end cancels all tasks, too
                task.cancel()
        if going:
            await asyncio.wait(going)
        if self._supply is not None:
            await self._supply.close()
        await self._reporter.stop(self._end)
        self._source.close()
        if self._bar is not None:
            self._bar.stop()

    async def _start(self) -> None:
        self.loop = asyncio.get_running_loop()
        client = self._plan.client or await current()
        timeout_s = self._plan.timeout_s or (await client.defaults.aio()).timeout
        self._supply = Supply(self._plan, client, timeout_s)
        self._reporter.start(client, self._plan.options.get("environment"))
        if self._bar is not None:
            self._bar.start()
        self._feeding = tasks.shared(self._feed(self._supply), "map: items")
        self._feeding.add_done_callback(self._note_end)

    def _take(self) -> Outcome[T, R] | None:
        index = self._next if self._plan.ordered else next(iter(self._ready), -1)
        outcome = self._ready.pop(index, None)
        if outcome is not None:
            self._next += 1
        return outcome

    async def _feed(self, supply: Supply) -> None:
        index = 0
        while True:
            await self._room.acquire()
            await self._sandboxes.acquire()
            try:
                found = await self._source.next()
            except BaseException as error:  # the iterable's own: the taker of the outcomes gets it
                if _is_cancelled(error):
                    raise
                self._source_error = error
                found = None
            if found is None:
                await supply.exhausted()
                return
            task = tasks.shared(self._item(index, found[0], supply), "map: item")
            self._items.add(task)
            task.add_done_callback(self._note_end)
            index += 1

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._items.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
        self._changed.set()

    async def _item(self, index: int, item: T, supply: Supply) -> None:
        try:
            await self._attempts(index, item, supply)
        except WrongSpec as error:
            self._failure = self._failure or error.__cause__
        except (KeyboardInterrupt, SystemExit) as error:  # the function's; beyond this task it would end the loop
            self._failure = self._failure or error
        finally:
            self._sandboxes.release()

    async def _attempts(self, index: int, item: T, supply: Supply) -> None:
        began = asyncio.get_running_loop().time()
        attempt, pause_s = 0, _PAUSES_S[0]
        while True:
            attempt += 1
            lent: Lent | None = None
            value, error = None, None
            try:
                lent = await supply.take(item)
                made = asyncio.get_running_loop().time()
                async with self._running:
                    began += asyncio.get_running_loop().time() - made  # a sandbox made ahead waits for its turn
                    lent = await self._fresh(lent, item, supply)
                    value = await self._call(lent, item)
            except BaseException as raised:
                if _must_end(raised):
                    if lent is not None:
                        await supply.end(lent)
                    raise
                error = raised
            again = error is not None and attempt <= self._plan.retries and self._plan.retries_after(error)
            if not again:
                seconds = asyncio.get_running_loop().time() - began
                sandbox_id = None if lent is None else lent.sandbox.id
                self._tell(Outcome(index, item, value, error, attempt, seconds, sandbox_id))
            if lent is not None:
                await (supply.give_back(lent) if error is None else supply.end(lent))
            if not again:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSES_S[1])

    async def _fresh(self, lent: Lent, item: T, supply: Supply) -> Lent:
        """The sandbox, or another one if it has ended while it waited."""
        if asyncio.get_running_loop().time() - lent.since < _STALE_S or not (await lent.sandbox.info.aio()).ended:
            return lent
        await supply.end(lent)
        return await supply.take(item)

    async def _call(self, lent: Lent, item: T) -> Any:
        try:
            async with asyncio.timeout(lent.timeout_s) as limit:
                if self._in_thread:
                    value = await in_thread(self._function, lent.sandbox, item)
                else:
                    value = self._function(lent.sandbox, item)
                return await value if inspect.isawaitable(value) else value
        except TimeoutError:
            if not limit.expired():
                raise  # the function's own
            raise DeadlineExceeded(
                f"the item took longer than {lent.timeout_s:g} s; give a longer `timeout`", field="timeout"
            ) from None

    def _tell(self, outcome: Outcome[T, R]) -> None:
        self._ready[outcome.index] = outcome
        self._reporter.count(outcome.value, outcome.ok)
        if self._bar is not None:
            self._bar.count(outcome.value, outcome.ok)
        self._changed.set()


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _must_end(error: BaseException) -> bool:
    """Whether the error ends the item's task, instead of being the item's outcome."""
    return _is_cancelled(error) or isinstance(error, WrongSpec | KeyboardInterrupt | SystemExit)


def _is_cancelled(error: BaseException) -> bool:
    """Whether the running task is being cancelled; else the function, or the iterable, raised the error itself."""
    return isinstance(error, asyncio.CancelledError) and being_cancelled()
