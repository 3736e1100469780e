"""What has happened lately: creates, ends and latencies by environment, in points of ten seconds for an hour. Pure: the
caller passes the time (unix seconds).

In memory only: a controller that is restarted begins anew.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from shoal.actors.controller.latencies import Latencies, merged
from shoal.model.metrics import EXEC_SECONDS, Series
from shoal.model.overview import LATELY_S, POINT_S, POINTS, Latency

MOST_ENVIRONMENTS = 128
"""Environments of which an hour is kept, some 100 kB each; beyond that, those in which nothing happened for longest are
forgotten."""

_LATELY = round(LATELY_S / POINT_S)
_MINUTE = round(60 / POINT_S)


@dataclass(slots=True)
class Interval:
    """Ten seconds of one environment. `states`: its living sandboxes at their end; `latencies`: of creates, kept for
    five minutes, `create` is what comes of them."""

    creates: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    latencies: Latencies | None = None
    states: Mapping[str, int] = field(default_factory=dict)
    create: Latency = field(default_factory=Latency)

    @property
    def quiet(self) -> bool:
        return not (self.creates or self.ends or self.latencies or self.states)

    def close(self) -> None:
        if self.latencies is not None:
            self.create = merged([self.latencies])


@dataclass(slots=True)
class _Kept:
    """An environment's intervals, by the number of each, oldest first; quiet ones are left out."""

    ring: deque[tuple[int, Interval]] = field(default_factory=lambda: deque(maxlen=POINTS))
    now: Interval = field(default_factory=Interval)

    def add(self, number: int, interval: Interval) -> None:
        interval.close()
        if not interval.quiet:
            self.ring.append((number, interval))
        for each, old in reversed(self.ring):
            if each <= number - _LATELY:
                if old.latencies is None:
                    break
                old.latencies = None


@dataclass(slots=True)
class Activity:
    """`began`: when this controller began to count. The environment `""` stands for all of them together."""

    began: float
    closed: deque[int] = field(default_factory=lambda: deque(maxlen=POINTS))
    """The numbers of the intervals that are over; one may be missing where the controller was busy."""
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _execs: deque[tuple[int, Latencies, Latency]] = field(default_factory=lambda: deque(maxlen=POINTS))
    _execs_now: Latencies = field(default_factory=Latencies)

    # -- what happens -------------------------------------------------------------------------------

    def accepted(self, environment: str) -> None:
        """A create is on record."""
        for kept in self._of(environment):
            kept.now.creates += 1

    def started(self, environment: str, seconds: float) -> None:
        """A sandbox runs, so long after its create was accepted."""
        for kept in self._of(environment):
            if kept.now.latencies is None:
                kept.now.latencies = Latencies()
            kept.now.latencies.add(seconds)

    def ended(self, environment: str, reason: str) -> None:
        """A sandbox has ended."""
        for kept in self._of(environment):
            kept.now.ends[reason] += 1

    def reported(self, amounts: Mapping[Series, float]) -> None:
        """A replica reports what it has counted: its execs are taken out of that."""
        counts = sorted(
            (float(dict(series.labels)["le"]), round(amount))
            for series, amount in amounts.items()
            if series.family == EXEC_SECONDS and series.name.endswith("_bucket")
        )
        below, counted = 0.0, 0
        for bound, amount in counts:
            if amount > counted:
                middle = math.sqrt(below * bound) if below and bound != math.inf else below or bound
                self._execs_now.add(middle, amount - counted)
            below, counted = bound, amount

    def close_interval(self, now: float, states: Mapping[str, Mapping[str, int]]) -> None:
        """Ten seconds are over. `states`: the living sandboxes by environment and state."""
        number = interval_at(now)
        if self.closed and number <= self.closed[-1]:
            return  # the clock was set back, or the loop is early: it is counted with the next
        self.closed.append(number)
        everywhere: Counter[str] = Counter()
        for environment, counts in states.items():
            everywhere.update(counts)
            self._one(environment).now.states = counts
        self._one("").now.states = everywhere
        for kept in self._kept.values():
            ended, kept.now = kept.now, Interval()
            kept.add(number, ended)
        execs, self._execs_now = self._execs_now, Latencies()
        if execs:
            self._execs.append((number, execs, merged([execs])))
        self._forget(number)

    # -- what is asked ------------------------------------------------------------------------------

    def intervals(self, environment: str | None) -> dict[int, Interval]:
        """By number: those of the last hour in which something happened."""
        kept = self._kept.get(environment or "")
        return {} if kept is None else dict(kept.ring)

    def lately(self, environment: str | None, now: float) -> tuple[int, int, Latency]:
        """(creates, ends, both of the last minute; latency of creates of the last five)."""
        kept = self._kept.get(environment or "")
        if kept is None:
            return 0, 0, Latency()
        number = interval_at(now)
        recent = [(number, kept.now)]
        for each, interval in reversed(kept.ring):
            if each <= number - _LATELY:
                break
            recent.append((each, interval))
        minute = [interval for each, interval in recent if each > number - _MINUTE + 1]
        return (
            sum(interval.creates for interval in minute),
            sum(interval.ends.total() for interval in minute),
            merged(interval.latencies for _, interval in recent if interval.latencies is not None),
        )

    def ends(self, environment: str | None) -> Counter[str]:
        """By reason, in the last hour."""
        kept = self._kept.get(environment or "")
        found: Counter[str] = Counter()
        if kept is not None:
            found.update(kept.now.ends)
            for _, interval in kept.ring:
                found.update(interval.ends)
        return found

    def execs(self, now: float) -> tuple[dict[int, Latency], Latency]:
        """Latency of execs through the API: by the number of each interval of the last hour that had any; and of the
        last five minutes."""
        number = interval_at(now)
        lately = [bins for each, bins, _ in self._execs if each > number - _LATELY]
        return {each: latency for each, _, latency in self._execs}, merged([*lately, self._execs_now])

    # -- inside -------------------------------------------------------------------------------------

    def _of(self, environment: str) -> Iterator[_Kept]:
        yield self._one(environment)
        yield self._one("")

    def _one(self, environment: str) -> _Kept:
        found = self._kept.get(environment)
        if found is None:
            found = self._kept[environment] = _Kept()
        return found

    def _forget(self, number: int) -> None:
        for name, kept in list(self._kept.items()):
            while kept.ring and kept.ring[0][0] <= number - POINTS:
                kept.ring.popleft()
            if not kept.ring and name:
                del self._kept[name]
        beyond = len(self._kept) - MOST_ENVIRONMENTS - 1
        if beyond > 0:
            stalest = sorted((kept.ring[-1][0], name) for name, kept in self._kept.items() if name)
            for _, name in stalest[:beyond]:
                del self._kept[name]


def interval_at(now: float) -> int:
    """The number of the interval that a time is in."""
    return int(now // POINT_S)
