"""Measures what sandboxes write, if the engine can't give them disks of their own.

`Schedule` is pure: it decides when to measure which container and whether that is over its limit. `DiskWatch` measures.
A measurement counts a whole tree, so slow trees are measured less often: one may take a twentieth of a core, all
together a quarter. How long a tree rests depends on that tree alone, and slow trees queue behind each other only: code
in one sandbox can't keep the watch from another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from shoal.actors.engines.contract import Engine
from shoal.model.errors import NotFound, ShoalError

_log = logging.getLogger(__name__)

ONE_TREE = 20
"""A tree rests this many times as long as counting it took."""
ALL_TREES = 4
"""Of a core's time each tree has its equal part of one in so many."""
SLOW = 0.25
"""Seconds. What takes longer to count is measured one after another, apart from the rest."""

_LONGEST_WAIT = 60.0


@dataclass(slots=True)
class _Watched:
    limit: int
    due: float
    took: float = 0.0
    looking: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """A measurement that is due. `slow`: the last one of this tree took long."""

    key: str
    limit: int
    slow: bool


class Schedule:
    """When to measure which container. Times: seconds of the caller's clock; sizes: bytes."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._watched: dict[str, _Watched] = {}

    def add(self, key: str, limit: int, now: float) -> None:
        """Watches a container, due at once. If it is watched already, sets its limit."""
        known = self._watched.get(key)
        if known is None:
            self._watched[key] = _Watched(limit, now)
        else:
            known.limit = limit

    def remove(self, key: str) -> None:
        self._watched.pop(key, None)

    def __contains__(self, key: str) -> bool:
        return key in self._watched

    def begin(self, now: float) -> list[Look]:
        """All that are due; none is due again before `end`."""
        due = [(key, watched) for key, watched in self._watched.items() if not watched.looking and watched.due <= now]
        for _, watched in due:
            watched.looking = True
        return [Look(key, tree.limit, tree.took > SLOW) for key, tree in sorted(due, key=lambda pair: pair[1].due)]

    def end(self, key: str, used: int | None, began: float, now: float) -> bool:
        """Notes a measurement (`used` None: it failed). Returns whether the container is over its limit; then it is
        watched no more."""
        watched = self._watched.get(key)
        if watched is None:
            return False
        if used is not None and used > watched.limit:
            del self._watched[key]
            return True
        watched.looking = False
        watched.took = now - began
        watched.due = now + max(self._interval, watched.took * max(ONE_TREE, ALL_TREES * len(self._watched)))
        return False

    def wait(self, now: float) -> float | None:
        """Seconds until the next measurement is due; None if nothing is watched."""
        dues = [watched.due for watched in self._watched.values() if not watched.looking]
        return max(0.0, min(dues) - now) if dues else None


class DiskWatch:
    """Measures the containers that were added while `run` runs, and calls `on_exceeded(key, bytes)` once for each
    beyond its limit. `interval`: the least seconds between two measurements of one container."""

    def __init__(
        self,
        engine: Engine,
        interval: float,
        on_exceeded: Callable[[str, int], None] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_exceeded = on_exceeded
        self.sizes: dict[str, int] = {}
        """Bytes, as measured last."""
        self._engine = engine
        self._clock = clock
        self._schedule = Schedule(interval)
        self._changed = asyncio.Event()
        self._quick, self._slow = asyncio.Semaphore(1), asyncio.Semaphore(1)

    def add(self, key: str, limit: int) -> None:
        """Watches `key`. `limit`: bytes; 0: no limit, so it is not watched."""
        if limit > 0:
            self._schedule.add(key, limit, self._clock())
            self._changed.set()

    def remove(self, key: str) -> None:
        """Stops watching `key`. Idempotent."""
        self._schedule.remove(key)
        self.sizes.pop(key, None)

    async def run(self) -> None:
        """Runs until it is cancelled."""
        async with asyncio.TaskGroup() as looks:
            while True:
                for look in self._schedule.begin(self._clock()):
                    looks.create_task(self._look(look))
                await self._wait()

    async def step(self) -> None:
        """Measures each that is due now."""
        await asyncio.gather(*(self._look(look) for look in self._schedule.begin(self._clock())))

    async def _wait(self) -> None:
        self._changed.clear()
        seconds = self._schedule.wait(self._clock())
        try:
            async with asyncio.timeout(_LONGEST_WAIT if seconds is None else seconds):
                await self._changed.wait()
        except TimeoutError:
            # The next measurement is due.
            pass

    async def _look(self, look: Look) -> None:
        key = look.key
        used: int | None = None
        over, began = False, self._clock()
        try:
            async with self._slow if look.slow else self._quick:
                began = self._clock()
                used = await self._engine.disk_usage(key, limit=look.limit)
        except NotFound:
            self._schedule.remove(key)
        except ShoalError as error:
            _log.warning("could not measure the disk of container %s: %s", key, error)
        finally:
            # Also when cancelled: it is due again when the watch runs again.
            over = self._schedule.end(key, used, began, self._clock())
            self._changed.set()
        if used is not None and key in self._schedule:
            self.sizes[key] = used
        if over and used is not None and self.on_exceeded is not None:
            self.on_exceeded(key, used)
