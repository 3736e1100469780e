"""The sandbox actors: reuses idle ones, creates new ones if none is idle, and ends surplus ones.

Starting a Ray worker takes half a second and 45 MB, so a free slot waits a while for the next sandbox of its shape. A
slot that is being created is pending in Ray: that is the demand which Ray's autoscaler sees.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from shoal.model.errors import DeadlineExceeded, ShoalError, Unavailable
from shoal.model.settings import NodeSettings
from shoal.model.spec import SlotShape

log = logging.getLogger("shoal.slots")

_PRESSURE_S = 0.5

MAX_UNPLACED = 128
"""The most slots of one shape that are pending in Ray at once. Thousands would overload Ray."""


@dataclass(slots=True)
class Slot:
    """A sandbox actor. `handle`: the maker's handle of it; `node_id`: None until Ray has placed it; `idle_since`:
    monotonic seconds."""

    id: str
    shape: SlotShape
    handle: Any
    node_id: str | None = None
    idle_since: float = 0.0


class SlotMaker(Protocol):
    """Creates and ends slots: by Ray, or in memory in tests."""

    def create(self, shape: SlotShape, node_id: str | None = None) -> Slot:
        """Asks Ray for a new one and returns at once."""

    async def placed(self, slot: Slot) -> None:
        """Waits until it runs, and sets `node_id`; `Unavailable` if it died."""

    def kill(self, slot: Slot) -> None:
        """Ends its worker. Idempotent."""

    async def has_room(self, shape: SlotShape) -> bool:
        """Whether one more would start at once."""

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
    _idle: dict[SlotShape, deque[Slot]] = field(default_factory=dict)
    _waiting: dict[SlotShape, deque[asyncio.Future[Slot]]] = field(default_factory=dict)
    _making: dict[str, tuple[Slot, asyncio.Task[None]]] = field(default_factory=dict)

    async def take(self, shape: SlotShape, deadline_s: float) -> Slot:
        """An idle slot of `shape`, or the next that becomes free or is created; `DeadlineExceeded` after
        `deadline_s`."""
        idle = self.take_idle(shape)
        if idle is not None:
            return idle
        waiter: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        queue = self._waiting.setdefault(shape, deque())
        queue.append(waiter)
        self._make_missing(shape)
        pressure = asyncio.create_task(self._make_room(shape))
        try:
            async with asyncio.timeout(deadline_s):
                return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.put(waiter.result())  # it came as the wait ended
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    f"no room came free within {round(deadline_s, 2):g} s; "
                    "ask for less, end other sandboxes, or add nodes",
                    field="deadline",
                ) from None
            raise
        finally:
            pressure.cancel()
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
            if not waiter.done():
                waiter.set_result(slot)
                return
        slot.idle_since = time.monotonic()
        self._idle.setdefault(slot.shape, deque()).append(slot)

    def discard(self, slot: Slot) -> None:
        """Ends a slot that must not be used again."""
        self.maker.kill(slot)

    async def tend(self) -> None:
        """One turn of the pool's loop: ends slots that idled too long, and keeps a few of the default shape ready."""
        now = time.monotonic()
        for shape, idle in list(self._idle.items()):
            keep = self.settings.idle_slots if shape == self.default_shape else 0
            while len(idle) > keep and now - idle[0].idle_since > self.settings.slot_linger:
                self.maker.kill(idle.popleft())
            if not idle:
                del self._idle[shape]
        ready = len(self._idle.get(self.default_shape, ())) + self._being_made(self.default_shape)
        if (
            ready < self.settings.idle_slots
            and not self._pending_demand()
            and await self.maker.has_room(self.default_shape)
        ):
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
        self._making[slot.id] = (slot, asyncio.create_task(self._settle(slot)))

    async def _settle(self, slot: Slot) -> None:
        try:
            await self.maker.placed(slot)
        except ShoalError as error:
            self.maker.kill(slot)
            queue = self._waiting.get(slot.shape)
            if queue:
                waiter = queue.popleft()
                if not waiter.done():
                    waiter.set_exception(Unavailable(f"a sandbox actor did not start: {error}; try again"))
        else:
            self.put(slot)
        finally:
            self._making.pop(slot.id, None)
            self._make_missing(slot.shape)

    async def _make_room(self, shape: SlotShape) -> None:
        """While a caller waits, ends idle slots of other shapes to make room, oldest first."""
        while True:
            await asyncio.sleep(_PRESSURE_S)
            others = [idle[0] for other, idle in self._idle.items() if other != shape and idle]
            if others:
                oldest = min(others, key=lambda s: s.idle_since)
                idle = self._idle[oldest.shape]
                idle.popleft()
                if not idle:
                    del self._idle[oldest.shape]
                self.maker.kill(oldest)

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

    def _pending_demand(self) -> bool:
        return any(self._waiting.values())
