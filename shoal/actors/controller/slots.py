"""The sandbox actors: reuses idle ones, creates new ones if none is idle, and ends surplus ones.

Starting a Ray worker takes half a second and 45 MB, so a free slot waits a while for the next sandbox of its shape. A
slot that is being created is pending in Ray: that is the demand which Ray's autoscaler sees.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from shoal.actors.controller.room import NodeRoom, Waiting, fits, idle_to_end, with_room_of
from shoal.actors.controller.slot import Slot
from shoal.model import tasks
from shoal.model.errors import DeadlineExceeded, Unavailable
from shoal.model.settings import NodeSettings
from shoal.model.spec import SlotShape

log = logging.getLogger("shoal.slots")

_RAY_KNOWS_S = 3.0
"""Seconds after which Ray surely counts as free what an ended slot held."""

MAX_UNPLACED = 128
"""The most slots of one shape that are pending in Ray at once. Thousands would overload Ray."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    """A caller that waits for `slot`. `since`: by the pool's clock."""

    slot: asyncio.Future[Slot]
    since: float


class SlotMaker(Protocol):
    """Creates and ends slots: by Ray, or in memory in tests."""

    def create(self, shape: SlotShape, node_id: str | None = None) -> Slot:
        """Asks Ray for a new one and returns at once."""

    async def placed(self, slot: Slot) -> None:
        """Waits until it runs, and sets `node_id`; `Unavailable` if it died."""

    def kill(self, slot: Slot) -> None:
        """Ends its worker. Idempotent."""

    async def rooms(self) -> Mapping[str, NodeRoom]:
        """What each node has and what of it is free, by the node's id."""

    async def existing(self) -> list[str]:
        """The ids of the slots of an earlier controller, running or pending."""

    async def describe(self, slot_id: str) -> tuple[Slot, str | None] | None:
        """A slot of an earlier controller and the sandbox that it holds. None, and the slot is ended, if it does not
        answer."""


@dataclass(slots=True)
class SlotPool:
    """The slots that hold no sandbox, and the callers that wait for one."""

    maker: SlotMaker
    settings: NodeSettings
    default_shape: SlotShape
    clock: Callable[[], float] = time.monotonic
    _idle: dict[SlotShape, deque[Slot]] = field(default_factory=dict)
    _waiting: dict[SlotShape, deque[_Waiter]] = field(default_factory=dict)
    _making: dict[str, tuple[Slot, asyncio.Task[None]]] = field(default_factory=dict)
    _last_start: float = 0.0
    _ended: list[tuple[float, Slot]] = field(default_factory=list)  # for others, and when: Ray may not know it yet

    async def take(self, shape: SlotShape, deadline_s: float) -> Slot:
        """An idle slot of `shape`, or the next that becomes free or is created; `DeadlineExceeded` after
        `deadline_s`."""
        idle = self.take_idle(shape)
        if idle is not None:
            return idle
        waiter = _Waiter(asyncio.get_running_loop().create_future(), self.clock())
        queue = self._waiting.setdefault(shape, deque())
        queue.append(waiter)
        self._make_missing(shape)
        slot = waiter.slot
        try:
            async with asyncio.timeout(deadline_s):
                return await slot
        except BaseException as error:
            if slot.done() and not slot.cancelled() and slot.exception() is None:
                self.put(slot.result())  # it came as the wait ended
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    f"no room came free within {round(deadline_s, 2):g} s; "
                    "ask for less, end other sandboxes, or add nodes",
                    field="deadline",
                ) from None
            raise
        finally:
            if waiter in queue:
                queue.remove(waiter)
            self._drop_surplus_demand(shape)

    def take_idle(self, shape: SlotShape) -> Slot | None:
        """An idle slot of `shape`, if there is one now."""
        idle = self._idle.get(shape)
        return idle.pop() if idle else None  # the one used last: its memory is most likely cached

    def put(self, slot: Slot) -> None:
        """Gives a free slot to the caller that has waited longest for its shape, else lets it idle."""
        queue = self._waiting.get(slot.shape)
        while queue:
            waiter = queue.popleft()
            if not waiter.slot.done():
                waiter.slot.set_result(slot)
                return
        slot.idle_since = self.clock()
        self._idle.setdefault(slot.shape, deque()).append(slot)

    def discard(self, slot: Slot) -> None:
        """Ends a slot that must not be used again."""
        self.maker.kill(slot)

    async def tend(self, held: Iterable[Slot]) -> None:
        """One turn of the pool's loop: ends slots that idled too long, keeps a few of the default shape ready, and
        makes room for callers that wait. `held`: the slots that hold a sandbox."""
        now = self.clock()
        for shape, idle in list(self._idle.items()):
            keep = self.settings.idle_slots if shape == self.default_shape else 0
            while len(idle) > keep and now - idle[0].idle_since > self.settings.slot_linger:
                self.maker.kill(idle.popleft())
            if not idle:
                del self._idle[shape]
        ready = len(self._idle.get(self.default_shape, ())) + self._being_made(self.default_shape)
        if any(self._waiting.values()):
            if self._idle:
                self._make_room(await self.maker.rooms(), held)
        elif ready < self.settings.idle_slots and fits(self.default_shape, await self.maker.rooms()):
            self._make(self.default_shape)

    def close(self) -> None:
        """Ends every slot that holds no sandbox."""
        for slot, task in list(self._making.values()):
            task.cancel()
            self.maker.kill(slot)
        self._making.clear()
        for idle in self._idle.values():
            for slot in idle:
                self.maker.kill(slot)
        self._idle.clear()

    @property
    def idle_count(self) -> int:
        return sum(len(idle) for idle in self._idle.values())

    def _make_missing(self, shape: SlotShape) -> None:
        """Creates a slot for each caller that waits."""
        for _ in range(self._being_made(shape), min(len(self._waiting.get(shape, ())), MAX_UNPLACED)):
            self._make(shape)

    def _make(self, shape: SlotShape) -> None:
        slot = self.maker.create(shape)
        settling = tasks.supervise(
            partial(self._settle, slot), "make slot", attempts=1, failed=partial(self._not_made, slot)
        )
        self._making[slot.id] = (slot, settling)

    async def _settle(self, slot: Slot) -> None:
        await self.maker.placed(slot)
        self._last_start = self.clock()
        self._making.pop(slot.id, None)
        self.put(slot)
        self._make_missing(slot.shape)

    def _not_made(self, slot: Slot, error: Exception) -> None:
        """Whoever has waited longest is told."""
        self._making.pop(slot.id, None)
        self.maker.kill(slot)
        queue = self._waiting.get(slot.shape)
        if queue:
            waiter = queue.popleft()
            if not waiter.slot.done():
                waiter.slot.set_exception(Unavailable(f"a sandbox actor did not start: {error}; try again"))
        self._make_missing(slot.shape)

    def _make_room(self, rooms: Mapping[str, NodeRoom], held: Iterable[Slot]) -> None:
        """Ends the idle slots that are in the way of callers that wait."""
        now = self.clock()
        self._ended = [(at, slot) for at, slot in self._ended if now - at < _RAY_KNOWS_S]
        waiters = [
            (waiter.since, Waiting(shape, now - max(waiter.since, self._last_start)))
            for shape, queue in self._waiting.items()
            for waiter in list(queue)[:MAX_UNPLACED]
        ]
        waiting = [caller for _, caller in sorted(waiters, key=lambda pair: pair[0])]
        idle = sorted((slot for slots in self._idle.values() for slot in slots), key=lambda slot: slot.idle_since)
        for slot in idle_to_end(waiting, with_room_of(rooms, (slot for _, slot in self._ended)), held, idle):
            slots = self._idle[slot.shape]
            slots.remove(slot)
            if not slots:
                del self._idle[slot.shape]
            self.maker.kill(slot)
            self._ended.append((now, slot))

    def _drop_surplus_demand(self, shape: SlotShape) -> None:
        """Ends pending slots for which nobody waits any more."""
        wanted = len(self._waiting.get(shape, ()))
        if shape == self.default_shape:
            wanted = max(wanted, self.settings.idle_slots - len(self._idle.get(shape, ())))
        unplaced = [(s, t) for s, t in self._making.values() if s.shape == shape and s.node_id is None]
        while len(unplaced) > wanted:
            slot, task = unplaced.pop()
            task.cancel()
            self._making.pop(slot.id, None)
            self.maker.kill(slot)

    def _being_made(self, shape: SlotShape) -> int:
        return sum(1 for slot, _ in self._making.values() if slot.shape == shape)
