"""The sandbox actors: reuses idle ones, creates new ones if none is idle, and ends surplus ones.

Starting a Ray worker takes half a second and 45 MB, so a free slot waits a while for the next sandbox of its shape. A
slot that is being created is pending in Ray: that is the demand which Ray's autoscaler sees.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from shoal.actors.controller.idle_slots import IdleSlots
from shoal.actors.controller.room import NodeRoom, Waiting, fits, idle_to_end, with_room_of
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.slot_maker import SlotMaker
from shoal.actors.controller.slot_queue import SlotQueue
from shoal.model import tasks
from shoal.model.capacity import WaitingSandboxes
from shoal.model.errors import DeadlineExceeded, Unavailable
from shoal.model.spec import SlotShape

log = logging.getLogger("shoal.slots")

_RAY_KNOWS_S = 3.0
"""Seconds after which Ray surely counts as free what an ended slot held."""

MAX_UNPLACED = 128
"""The most slots of one shape that are pending in Ray at once. Thousands would overload Ray."""


class SpareSlots(Protocol):
    """Slots that are kept ready for sandboxes of one shape, and end for callers that find no room."""

    def spare(self) -> Sequence[Slot]:
        """All of them, the first to end first."""

    def starting(self) -> Sequence[Slot]:
        """Those that are being made ready."""

    def give_up(self, slot: Slot) -> None:
        """Ends one."""


@dataclass(slots=True)
class SlotPool:
    """The slots that hold no sandbox, and the callers that wait for one."""

    maker: SlotMaker
    idle: IdleSlots
    clock: Callable[[], float] = time.monotonic
    _queue: SlotQueue = field(default_factory=SlotQueue)
    _making: dict[str, tuple[Slot, asyncio.Task[None]]] = field(default_factory=dict)
    _last_start: float = 0.0
    spare: SpareSlots | None = None
    _ended: list[tuple[float, Slot]] = field(default_factory=list)  # for others, and when: Ray may not know it yet

    async def take(self, shape: SlotShape, deadline_s: float) -> Slot:
        """An idle slot of `shape`, or the next that becomes free or is created; `DeadlineExceeded` after
        `deadline_s`."""
        idle = self.take_idle(shape)
        if idle is not None:
            return idle
        waiter = self._queue.add(shape, self.clock())
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
            self._queue.remove(waiter)
            self._drop_surplus_demand(shape)

    def take_idle(self, shape: SlotShape) -> Slot | None:
        """An idle slot of `shape`, if there is one now."""
        return self.idle.take(shape)

    def put(self, slot: Slot) -> None:
        """Gives a free slot to the caller that has waited longest for its shape, else lets it idle."""
        waiter = self._queue.next(slot.shape)
        if waiter is None:
            self.idle.add(slot, self.clock())
        else:
            waiter.slot.set_result(slot)

    def discard(self, slot: Slot) -> None:
        """Ends a slot that must not be used again."""
        self.maker.kill(slot)

    def let_go(self, node_id: str) -> None:
        """Ends the idle slots on a node, which leaves the cluster."""
        for slot in self.idle.oldest_first():
            if slot.node_id == node_id:
                self.idle.remove(slot)
                self.maker.kill(slot)

    async def tend(self, held: Iterable[Slot]) -> None:
        """One turn of the pool's loop: ends slots that idled too long, keeps a few of the default shape ready, and
        makes room for callers that wait. `held`: the slots that hold a sandbox."""
        for slot in self.idle.remove_expired(self.clock()):
            self.maker.kill(slot)
        shape = self.idle.default_shape
        if self._queue:
            if self.idle or (self.spare is not None and self.spare.spare()):
                self._make_room(await self.maker.rooms(), held)
        elif self.idle.missing(self._being_made(shape) + self._spare_count(shape)) and fits(
            shape, await self.maker.rooms()
        ):
            self._make(shape)

    def waiting(self) -> Iterator[WaitingSandboxes]:
        """What waits, by shape."""
        now = self.clock()
        for shape, waiters in self._queue.by_shape():
            regions = () if shape.region is None else (shape.region,)
            oldest_s = now - waiters[0].since
            yield WaitingSandboxes(shape.cpu, shape.memory, shape.gpu, "runc", regions, None, len(waiters), oldest_s)

    @property
    def has_waiting(self) -> bool:
        """Whether callers wait for a slot."""
        return bool(self._queue)

    def close(self) -> None:
        """Ends every slot that holds no sandbox."""
        for slot, task in list(self._making.values()):
            task.cancel()
            self.maker.kill(slot)
        self._making.clear()
        for slot in self.idle.oldest_first():
            self.idle.remove(slot)
            self.maker.kill(slot)

    def _make_missing(self, shape: SlotShape) -> None:
        """Creates a slot for each caller that waits."""
        for _ in range(self._being_made(shape), min(self._queue.count(shape), MAX_UNPLACED)):
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
        waiter = self._queue.next(slot.shape)
        if waiter is not None:
            waiter.slot.set_exception(Unavailable(f"a sandbox actor did not start: {error}; try again"))
        self._make_missing(slot.shape)

    def _make_room(self, rooms: Mapping[str, NodeRoom], held: Iterable[Slot]) -> None:
        """Ends the idle slots that are in the way of callers that wait."""
        now = self.clock()
        self._ended = [(at, slot) for at, slot in self._ended if now - at < _RAY_KNOWS_S]
        waiting = [
            Waiting(waiter.shape, now - max(waiter.since, self._last_start))
            for waiter in sorted(self._queue.first(MAX_UNPLACED), key=lambda waiter: waiter.since)
        ]
        rooms = with_room_of(rooms, (slot for _, slot in self._ended))
        spare = [] if self.spare is None else self.spare.spare()
        known = held if self.spare is None else [*held, *self.spare.starting()]
        for slot in idle_to_end(waiting, rooms, known, [*self.idle.oldest_first(), *spare]):
            if slot in spare and self.spare is not None:
                self.spare.give_up(slot)
            else:
                self.idle.remove(slot)
                self.maker.kill(slot)
            self._ended.append((now, slot))

    def _drop_surplus_demand(self, shape: SlotShape) -> None:
        """Ends pending slots for which nobody waits any more."""
        wanted = self._queue.count(shape)
        if shape == self.idle.default_shape:
            wanted = max(wanted, self.idle.settings.idle_slots - self.idle.count(shape))
        unplaced = [(s, t) for s, t in self._making.values() if s.shape == shape and s.node_id is None]
        while len(unplaced) > wanted:
            slot, task = unplaced.pop()
            task.cancel()
            self._making.pop(slot.id, None)
            self.maker.kill(slot)

    def _spare_count(self, shape: SlotShape) -> int:
        spare = () if self.spare is None else (*self.spare.spare(), *self.spare.starting())
        return sum(1 for slot in spare if slot.shape == shape)

    def _being_made(self, shape: SlotShape) -> int:
        return sum(1 for slot, _ in self._making.values() if slot.shape == shape)
