"""Decides how many sandboxes a pool keeps ready: how many to make, which to end. Pure: the caller passes the time.

Terms
    ready      a slot that holds a started container, whose agent is connected: a create of its shape takes it
    declared   a pool that somebody asked for; it has its own bounds
    automatic  the pool of a shape that was created several times lately; its bounds are the settings'

What there should be follows demand: the least that a pool keeps, and as many more as are taken while one is made.
What is being made counts as if it were there. Callers that wait for room come first: then nothing is made.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from shoal.model.settings import PoolSettings
from shoal.model.spec import ContainerShape, SandboxSpec, SlotShape

WINDOW_S = 30.0
"""The takes of so many seconds give the rate. Longer, and a burst would be answered long after it is over."""

FIRST_MAKE_S = 2.0
"""What making one is expected to take before any was made: a worker of Ray's half a second, a container a quarter."""

_WEIGHT = 0.3  # of the newest time that one took to make
_MOST_TAKES = 10_000
_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class ReadyShape:
    """What must be equal for a ready slot to serve a create."""

    slot: SlotShape
    container: ContainerShape


def shape_of(spec: SandboxSpec) -> ReadyShape:
    """The shape that serves `spec`."""
    return ReadyShape(spec.slot_shape, spec.container_shape)


@dataclass(frozen=True, slots=True)
class Bounds:
    """`least` and `most` that a pool keeps ready. `linger_s`: how long one stays that is not needed any more;
    `max_age_s`: after which one is replaced."""

    least: int
    most: int
    linger_s: float
    max_age_s: float


@dataclass(slots=True)
class Demand:
    """How often a pool is taken from, how long making one takes, and whether making fails."""

    make_s: float = FIRST_MAKE_S
    not_before: float = 0.0
    _pause_s: float = _PAUSE_S
    _takes: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_TAKES))

    def note_take(self, now: float) -> None:
        """A create wanted one, whether one was ready or not."""
        self._takes.append(now)

    def note_made(self, seconds: float) -> None:
        """One was made, which took so long."""
        self.make_s += _WEIGHT * (seconds - self.make_s)
        self._pause_s, self.not_before = _PAUSE_S, 0.0

    def note_failed(self, now: float) -> None:
        """One could not be made: the next is tried after a pause, which doubles up to a minute."""
        if now >= self.not_before:  # several that fail together are one failure
            self.not_before = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def rate(self, now: float) -> float:
        """Takes per second."""
        while self._takes and self._takes[0] <= now - WINDOW_S:
            self._takes.popleft()
        return len(self._takes) / WINDOW_S


@dataclass(frozen=True, slots=True)
class Kept:
    """What there is of a pool. `ready`: (slot id, since when), longest first; `making`: how many are being made;
    `room`: how many its environment may have ready by its quota, None: any number; `blocked`: callers wait for the room
    that more of it would take."""

    bounds: Bounds
    demand: Demand
    ready: Sequence[tuple[str, float]]
    making: int
    room: int | None = None
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """How many to make now, and the slots to end."""

    make: int = 0
    end: tuple[str, ...] = ()


def target(pool: Kept, now: float) -> int:
    """How many there should be, those that are being made included."""
    bounds = pool.bounds
    most = bounds.most if pool.room is None else max(0, min(bounds.most, pool.room))
    # The rounding is for a product such as 3.0000000000000004.
    wanted = bounds.least + math.ceil(round(pool.demand.rate(now) * pool.demand.make_s, 6))
    return min(wanted, most)


def plan(pool: Kept, now: float) -> Plan:
    """What to do about one pool."""
    bounds, wanted = pool.bounds, target(pool, now)
    most = bounds.most if pool.room is None else max(0, min(bounds.most, pool.room))
    old = [slot for slot, since in pool.ready if now - since > bounds.max_age_s]
    fresh = [(slot, since) for slot, since in pool.ready if now - since <= bounds.max_age_s]
    missing = max(0, wanted - len(fresh) - pool.making)
    above = len(pool.ready) + pool.making - most
    ending: list[str] = []
    if above > 0:  # the bounds were lowered: at once
        ending = [slot for slot, _ in pool.ready][:above]
    elif old and missing == 0:
        ending = old  # others have taken their place
    elif old and above == 0:
        ending = old[:1]  # its place is needed for the one that follows it
    left = [(slot, since) for slot, since in fresh if slot not in ending]
    surplus = len(left) + pool.making - wanted
    if above <= 0 and surplus > 0:
        ending += [slot for slot, since in left if now - since > bounds.linger_s][:surplus]
    paused = pool.blocked or now < pool.demand.not_before
    make = 0 if paused else max(0, min(missing, most - len(pool.ready) - pool.making))
    return Plan(make, tuple(ending))


def plan_all(pools: Mapping[K, Kept], now: float, at_once: int) -> dict[K, Plan]:
    """What to do about all pools. `at_once`: the most that may be made at the same time. The pool that has least of
    what it should have comes first."""
    plans = {key: plan(pool, now) for key, pool in pools.items()}
    left = max(0, at_once - sum(pool.making for pool in pools.values()))
    made = dict.fromkeys(plans, 0)
    while left > 0:
        lacking = [key for key in plans if made[key] < plans[key].make]
        if not lacking:
            break
        key = min(lacking, key=lambda key: (len(pools[key].ready) + pools[key].making + made[key]) / _share(pools[key]))
        made[key] += 1
        left -= 1
    return {key: Plan(made[key], plans[key].end) for key in plans}


def lacking(pool: Kept) -> int:
    """How many a pool lacks of the least that it keeps, beside those that are being made: demand for machines."""
    least = pool.bounds.least if pool.room is None else max(0, min(pool.bounds.least, pool.room))
    return max(0, least - len(pool.ready) - pool.making)


def _share(pool: Kept) -> int:
    return max(1, pool.bounds.least)


@dataclass(slots=True)
class LateShapes:
    """The shapes that were created lately, and which of them deserve an automatic pool.

    One does once it was created `after` times within `linger` seconds, until it was not created for as long. Only the
    `shapes` created last are kept.
    """

    settings: PoolSettings
    _created: dict[ReadyShape, deque[float]] = field(default_factory=dict)
    _kept: set[ReadyShape] = field(default_factory=set)

    def note(self, shape: ReadyShape, now: float) -> None:
        """Notes that a sandbox of `shape` was created."""
        self._created.setdefault(shape, deque(maxlen=self.settings.after)).append(now)

    def restore(self, shape: ReadyShape, now: float) -> None:
        """An earlier controller kept it: it is kept on for a while."""
        self._kept.add(shape)
        self.note(shape, now)

    def forget(self, image: str) -> None:
        """None of this image is to be kept any more."""
        for shape in [shape for shape in self._created if shape.container.image == image]:
            del self._created[shape]
            self._kept.discard(shape)

    def wanted(self, now: float) -> Sequence[ReadyShape]:
        """The shapes to keep ready, the one created last first."""
        settings = self.settings
        for shape in [shape for shape, times in self._created.items() if now - times[-1] > settings.linger]:
            del self._created[shape]
        busy = [shape for shape, times in self._created.items() if shape in self._kept or self._often(times, now)]
        busy.sort(key=lambda shape: self._created[shape][-1], reverse=True)
        found = busy[: settings.shapes] if settings.ready > 0 else []
        self._kept = set(found)
        return found

    def _often(self, times: Sequence[float], now: float) -> bool:
        return len(times) >= self.settings.after and now - times[0] <= self.settings.linger


def most_within(quota_left: Iterable[tuple[float | None, float]]) -> int | None:
    """How many fit into what is left of each part of a quota (None: no bound), by what one takes of it."""
    bounds = [math.floor(max(0.0, left) / each + 1e-9) for left, each in quota_left if left is not None and each > 0]
    return min(bounds, default=None)
