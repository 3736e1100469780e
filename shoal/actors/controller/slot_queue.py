"""The callers that wait for a slot: those that want the same together, by environment, longest first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

from shoal.actors.controller.placement import ANYWHERE, Request, Selector
from shoal.actors.controller.slot import Slot
from shoal.model.spec import SlotShape

STARTING = "its slot is starting"


@dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    """A caller that waits for `slot`. `since`: by the pool's clock."""

    group: Group
    environment: str
    since: float
    slot: asyncio.Future[Slot]


@dataclass(slots=True, eq=False)
class Making:
    """A slot that was asked for and does not run yet. `since`: by the pool's clock."""

    slot: Slot
    group: Group
    since: float
    task: asyncio.Task[None] | None = None


@dataclass(slots=True, eq=False)
class Group:
    """Those that wait with one request. `pinned`, `pending`: the slots that were asked for on their behalf, on a node
    or wherever `selector` allows; `reason`: why they wait, for people; `failures`: slots that did not start, since one
    did; `helped`: when a slot of another shape last ended for its room; `served`: when one of them last got a slot that
    came free; `not_before`: until when Ray is not to look for room for it; `room_since`: since when a node has room for
    a slot that is pending; all four by the pool's clock."""

    request: Request
    pinned: dict[str, Making] = field(default_factory=dict)
    pending: dict[str, Making] = field(default_factory=dict)
    selector: Selector = ANYWHERE
    reason: str = STARTING
    failures: int = 0
    helped: float = -inf
    served: float = -inf
    not_before: float = -inf
    room_since: float = inf
    _waiters: dict[str, dict[Waiter, None]] = field(default_factory=dict)
    _count: int = 0

    def __len__(self) -> int:
        return self._count

    @property
    def short(self) -> int:
        """For how many of them no node has room."""
        return max(0, self._count - len(self.pinned))

    @property
    def in_turn(self) -> bool:
        """Whether some of them have room, and wait only until their slots may start."""
        return self.reason == STARTING and self._count > self.being_made

    @property
    def being_made(self) -> int:
        return len(self.pinned) + len(self.pending)

    def add(self, waiter: Waiter) -> None:
        self._waiters.setdefault(waiter.environment, {})[waiter] = None
        self._count += 1

    def remove(self, waiter: Waiter) -> None:
        """Idempotent."""
        waiters = self._waiters.get(waiter.environment, {})
        if waiter in waiters:
            del waiters[waiter]
            self._count -= 1
            if not waiters:
                del self._waiters[waiter.environment]

    def heads(self) -> Iterator[Waiter]:
        """Who has waited longest in each environment."""
        for waiters in self._waiters.values():
            yield next(iter(waiters))

    def by_environment(self) -> Iterator[tuple[str, int, float]]:
        """(environment, how many wait, since when the first does)."""
        for environment, waiters in self._waiters.items():
            yield environment, len(waiters), next(iter(waiters)).since

    def oldest(self) -> Waiter:
        return min(self.heads(), key=lambda waiter: waiter.since)

    def all(self) -> list[Waiter]:
        """In no order."""
        return [waiter for waiters in self._waiters.values() for waiter in waiters]

    def first(self, most: int) -> Iterator[Waiter]:
        """At most so many of each environment, the longest first."""
        for waiters in self._waiters.values():
            yield from (waiter for waiter, _ in zip(waiters, range(most), strict=False))


@dataclass(slots=True)
class SlotQueue:
    """The groups in which somebody waits, or for which a slot is being made."""

    groups: dict[Request, Group] = field(default_factory=dict)
    _by_shape: dict[SlotShape, dict[Request, Group]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return any(self.groups.values())

    def group(self, request: Request) -> Group:
        found = self.groups.get(request)
        if found is None:
            found = self.groups[request] = Group(request)
            self._by_shape.setdefault(request.shape, {})[request] = found
        return found

    def of_shape(self, shape: SlotShape) -> Iterator[Group]:
        yield from self._by_shape.get(shape, {}).values()

    def tidy(self, group: Group) -> None:
        """Forgets a group with which nothing is left to do."""
        request = group.request
        if not group and not group.being_made and self.groups.get(request) is group:
            del self.groups[request]
            shapes = self._by_shape[request.shape]
            del shapes[request]
            if not shapes:
                del self._by_shape[request.shape]
