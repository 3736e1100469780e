"""The callers that wait for a slot."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from shoal.actors.controller.slot import Slot
from shoal.model.spec import SlotShape


@dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    """A caller that waits for `slot`. `since`: by the pool's clock."""

    shape: SlotShape
    since: float
    slot: asyncio.Future[Slot]


@dataclass(slots=True)
class SlotQueue:
    """The waiting callers by shape, longest first."""

    _by_shape: dict[SlotShape, deque[Waiter]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._by_shape.values())

    def count(self, shape: SlotShape) -> int:
        return len(self._by_shape.get(shape, ()))

    def add(self, shape: SlotShape, now: float) -> Waiter:
        waiter = Waiter(shape, now, asyncio.get_running_loop().create_future())
        self._by_shape.setdefault(shape, deque()).append(waiter)
        return waiter

    def by_shape(self) -> Iterator[tuple[SlotShape, Sequence[Waiter]]]:
        yield from self._by_shape.items()

    def next(self, shape: SlotShape) -> Waiter | None:
        """Removes and returns who is next for a slot of `shape`."""
        queue = self._by_shape.get(shape)
        while queue:
            waiter = queue.popleft()
            self._tidy(shape)
            if not waiter.slot.done():
                return waiter
        return None

    def remove(self, waiter: Waiter) -> None:
        """Idempotent."""
        queue = self._by_shape.get(waiter.shape, ())
        if waiter in queue:
            self._by_shape[waiter.shape].remove(waiter)
            self._tidy(waiter.shape)

    def first(self, most: int) -> Iterator[Waiter]:
        """At most so many of each shape."""
        for queue in self._by_shape.values():
            yield from list(queue)[:most]

    def _tidy(self, shape: SlotShape) -> None:
        if not self._by_shape.get(shape, True):
            del self._by_shape[shape]
