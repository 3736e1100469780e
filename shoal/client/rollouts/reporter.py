"""What a map reports of itself to the cluster, so that others see how far it is.

It reports from the background loop, whatever its own loop does. No report delays the map, and none that fails is an
error of it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from shoal.client.dual_method import background_loop
from shoal.client.rollouts.outcome import score_of
from shoal.model import call_context, tasks, verbs
from shoal.model.errors import InvalidRequest, NotFound, PermissionDenied, ShoalError
from shoal.model.ids import new_rollout_id
from shoal.model.rollouts import EVERY_S, IDLE_S, MOST_POINTS, Rewards, RolloutReport, RolloutState

if TYPE_CHECKING:
    from shoal.client.cluster import Client

_log = logging.getLogger("shoal.map")

_CALL_S = 5.0
_LAST_S = 1.0
"""How long the map's end waits for its last report, where the one before arrived."""

_LARGEST = 1e300
"""Of a score, so that means stay finite."""

_NOT_TAKEN = (InvalidRequest, NotFound, PermissionDenied)
"""The cluster is of an earlier version, or the token may not: the same again."""


@dataclass(slots=True)
class _Point:
    """Scores that followed one another; `items`: how many outcomes there were by the last."""

    items: int
    count: int
    mean: float
    least: float
    most: float

    def take(self, later: _Point) -> None:
        self.items = later.items
        self.count += later.count
        self.mean += (later.mean - self.mean) * later.count / self.count
        self.least, self.most = min(self.least, later.least), max(self.most, later.most)


class Curve:
    """Rewards over items in a bounded number of points: where there would be more, each two become one."""

    def __init__(self) -> None:
        self._points: list[_Point] = []
        self._width = 1  # scores of a point

    def add(self, items: int, score: float) -> None:
        """One more score; `items`: how many outcomes there are with it."""
        point = _Point(items, 1, score, score, score)
        if self._points and self._points[-1].count < self._width:
            self._points[-1].take(point)
            return
        if len(self._points) == MOST_POINTS:
            for first, second in zip(self._points[::2], self._points[1::2], strict=True):
                first.take(second)
            del self._points[1::2]
            self._width *= 2
        self._points.append(point)

    def columns(self) -> Rewards:
        told = [(p.items, p.count, p.mean, p.least, p.most) for p in self._points]
        return Rewards(*map(tuple, zip(*told, strict=True))) if told else Rewards()


class _Counts(NamedTuple):
    done: int
    failed: int
    running: int
    state: RolloutState
    rewards: Rewards


class Reporter:
    """Counts the outcomes of one map and reports them. `running`: how many items are under way."""

    def __init__(self, name: str | None, total: int | None, running: Callable[[], int]) -> None:
        self.id = new_rollout_id()
        self._name = name
        self._total = total
        self._running = running
        self._lock = threading.Lock()  # the map's loop counts, the background loop reports
        self._done = 0
        self._failed = 0
        self._curve = Curve()
        self._began = 0.0
        self._state = RolloutState.RUNNING
        self._over = asyncio.Event()
        self._arrives = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reporting: concurrent.futures.Future[None] | None = None

    def start(self, client: Client, environment: str | None) -> None:
        """Reports from now on. `environment`: None for the token's."""
        self._began = time.monotonic()
        self._loop = background_loop()
        self._reporting = asyncio.run_coroutine_threadsafe(self._report(client, environment), self._loop)

    def count(self, value: object, ok: bool) -> None:
        """One more outcome."""
        score = score_of(value) if ok else None
        with self._lock:
            self._done += 1
            self._failed += not ok
            if score is not None and abs(score) <= _LARGEST:  # not so for NaN
                self._curve.add(self._done, score)

    async def stop(self, state: RolloutState) -> None:
        """Reports how it ended, if it was reported at all. May be called again."""
        reporting, self._reporting = self._reporting, None
        if reporting is None or self._loop is None:
            return
        self._state = state
        self._loop.call_soon_threadsafe(self._over.set)
        if self._arrives:
            await asyncio.wait([asyncio.wrap_future(reporting)], timeout=_LAST_S)

    async def _report(self, client: Client, environment: str | None) -> None:
        await tasks.shared(self._reports(client, environment), "report a map")

    async def _reports(self, client: Client, environment: str | None) -> None:
        call_context.leave()  # a report belongs to no call of the program's
        told: _Counts | None = None
        told_at = 0.0
        while True:
            try:
                async with asyncio.timeout(EVERY_S):
                    await self._over.wait()
            except TimeoutError:
                pass  # it goes on
            if self._over.is_set() and not self._arrives:
                return  # it was short, or the cluster is away
            counts = self._counts()
            if counts == told and time.monotonic() - told_at < IDLE_S:
                continue
            try:
                async with asyncio.timeout(_CALL_S):
                    where = environment or await client.transport.default_environment()
                    await client.transport.ask(verbs.report_rollout, self.id, self._told(where, counts))
            except _NOT_TAKEN as error:
                _log.info("the cluster does not show this map: %s", error)
                self._arrives = False
                return
            except (ShoalError, TimeoutError) as error:
                _log.debug("a report of this map did not arrive: %s", error)
                told, self._arrives = None, False
                continue
            told, told_at, self._arrives = counts, time.monotonic(), True
            if counts.state is not RolloutState.RUNNING:
                return

    def _counts(self) -> _Counts:
        with self._lock:
            running = 0 if self._over.is_set() else self._running()
            return _Counts(self._done, self._failed, running, self._state, self._curve.columns())

    def _told(self, environment: str, counts: _Counts) -> RolloutReport:
        return RolloutReport(
            environment=environment,
            total=self._total,
            done=counts.done,
            failed=counts.failed,
            running=counts.running,
            seconds=time.monotonic() - self._began,
            name=self._name,
            state=counts.state,
            rewards=counts.rewards,
        )
