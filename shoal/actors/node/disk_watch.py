"""Watches what sandboxes write, where the file system has no quotas.

`Schedule` decides, purely, when to look at which container and whether it is over its limit; `DiskWatch` looks. A look counts a
whole tree, so trees that take long to count are looked at less often: one may take a twentieth of a core, all together a quarter.
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
"""A tree rests for so many times as long as counting it took."""
ALL_TREES = 4
"""… and for so many times as long as counting all trees took."""

_AT_ONCE = 2
_LONGEST_WAIT = 60.0


@dataclass(slots=True)
class _Watched:
    limit: int
    due: float
    took: float = 0.0
    looking: bool = False


class Schedule:
    """When to look at which container. Times are in seconds of whatever clock the caller keeps, sizes in bytes."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._watched: dict[str, _Watched] = {}

    def add(self, key: str, limit: int, now: float) -> None:
        """From now on, first at once. Of one that is watched already: sets its limit."""
        known = self._watched.get(key)
        if known is None:
            self._watched[key] = _Watched(limit, now)
        else:
            known.limit = limit

    def remove(self, key: str) -> None:
        self._watched.pop(key, None)

    def begin(self, now: float) -> list[tuple[str, int]]:
        """(key, limit) of all that are due; each is not due again before its look has ended."""
        due = [(key, watched) for key, watched in self._watched.items() if not watched.looking and watched.due <= now]
        for _, watched in due:
            watched.looking = True
        return [(key, watched.limit) for key, watched in sorted(due, key=lambda pair: pair[1].due)]

    def end(self, key: str, used: int | None, began: float, now: float) -> bool:
        """A look ended; `used` None: it failed. Whether the container is over its limit: then it is not looked at any more."""
        watched = self._watched.get(key)
        if watched is None:
            return False
        if used is not None and used > watched.limit:
            del self._watched[key]
            return True
        watched.looking = False
        watched.took = now - began
        everything = sum(other.took for other in self._watched.values())
        watched.due = now + max(self._interval, ONE_TREE * watched.took, ALL_TREES * everything)
        return False

    def wait(self, now: float) -> float | None:
        """Seconds until the next look is due; None while there is nothing to wait for."""
        dues = [watched.due for watched in self._watched.values() if not watched.looking]
        return max(0.0, min(dues) - now) if dues else None


class DiskWatch:
    """Looks at the containers that were added, while `run` runs, and calls `on_exceeded(key, bytes)` once for one beyond its limit. `interval`
    is the least time between two looks at the same, in seconds."""

    def __init__(
        self,
        engine: Engine,
        interval: float,
        on_exceeded: Callable[[str, int], None] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_exceeded = on_exceeded
        self._engine = engine
        self._clock = clock
        self._schedule = Schedule(interval)
        self._changed = asyncio.Event()
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    def add(self, key: str, limit: int) -> None:
        """Watches `key`; `limit` in bytes. 0: no limit, so nothing to watch."""
        if limit > 0:
            self._schedule.add(key, limit, self._clock())
            self._changed.set()

    def remove(self, key: str) -> None:
        """Of one that is not watched: nothing."""
        self._schedule.remove(key)

    async def run(self) -> None:
        """Runs until it is cancelled."""
        async with asyncio.TaskGroup() as looks:
            while True:
                for key, limit in self._schedule.begin(self._clock()):
                    looks.create_task(self._look(key, limit))
                await self._wait()

    async def step(self) -> None:
        """One look at each that is due now."""
        await asyncio.gather(*(self._look(key, limit) for key, limit in self._schedule.begin(self._clock())))

    async def _wait(self) -> None:
        self._changed.clear()
        seconds = self._schedule.wait(self._clock())
        try:
            async with asyncio.timeout(_LONGEST_WAIT if seconds is None else seconds):
                await self._changed.wait()
        except TimeoutError:
            # Time for the next look.
            pass

    async def _look(self, key: str, limit: int) -> None:
        used: int | None = None
        over, began = False, self._clock()
        try:
            async with self._at_once:
                began = self._clock()
                used = await self._engine.disk_usage(key, limit=limit)
        except NotFound:
            self._schedule.remove(key)
        except ShoalError as error:
            _log.warning("could not measure the disk of container %s: %s", key, error)
        finally:
            # Also when cancelled: whoever runs the watch again finds it due again.
            over = self._schedule.end(key, used, began, self._clock())
            self._changed.set()
        if over and used is not None and self.on_exceeded is not None:
            self.on_exceeded(key, used)
