"""Makes slots ready for a pool, notices when they are not any more, and ends them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shoal.actors.controller.kept_pool import KeptPool, Making, ReadySlot
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.slot_maker import SlotMaker
from shoal.actors.controller.slots import SlotPool
from shoal.actors.handles import is_gone
from shoal.model import tasks
from shoal.model.errors import DeadlineExceeded, ShoalError, Unavailable

log = logging.getLogger("shoal.pools")

Call = Callable[..., Awaitable[Any]]

_PLACED_S = 300.0
"""Seconds after which an actor that does not come up is taken for lost: it was asked for where there was room."""
_PREPARE_S = 120.0
_RELEASE_S = 30.0
_RETRY_S = 1.0


@dataclass(slots=True)
class ReadyMaker:
    """`call`: how actors are called; `changed`: told when a pool has lost one."""

    slots: SlotPool
    maker: SlotMaker
    nodes: Nodes
    call: Call
    changed: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    _work: set[asyncio.Task[None]] = field(default_factory=set)

    def make(self, pool: KeptPool, slot: Slot) -> None:
        """Has a slot made ready. `slot`: a free one, or one that Ray is about to place."""
        making = Making(slot)
        pool.making.append(making)
        work = partial(self._prepare, pool, making, slot)
        making.task = self._supervise(work, "make ready", lambda _: self.end(slot))
        making.task.add_done_callback(lambda _: pool.forget(making))  # one that is cancelled may never have begun

    def hand_out(self, making: Making) -> Slot:
        """One that is being made goes to a create, which joins what was begun."""
        making.taken = True
        if making.task is not None:
            making.task.cancel()
        return making.slot

    def withdraw(self, making: Making) -> None:
        """Gives up one that is being made."""
        if making.task is not None and not making.taken:
            making.task.cancel()
            self.end(making.slot)

    def end_surplus(self, pool: KeptPool, slot: Slot) -> None:
        """Ends one that was ready. Of a pool that somebody asked for nothing stays; else the slot idles for the next
        sandbox."""
        if pool.label:
            self.end(slot)
        else:
            self._supervise(partial(self._empty, slot), "empty slot")

    def end(self, slot: Slot) -> None:
        """Ends the slot at once, and has its node remove what it had prepared."""
        self.slots.stock.discard(slot)
        if slot.node_id is not None:
            self._supervise(partial(self._release, slot.node_id, slot.id), "release container")

    def close(self) -> None:
        for task in self._work:
            task.cancel()

    async def _prepare(self, pool: KeptPool, making: Making, slot: Slot) -> None:
        began = self.clock()
        try:
            if slot.node_id is None:
                await self._placed(slot)
                self.slots.stock.came_up(slot)
            ready = await self.call(slot.handle, "prepare", pool.shape.container, pool.label, timeout_s=_PREPARE_S)
        except ShoalError as error:
            log.warning("pool %s: %s", pool.label or "of a shape created lately", error)
            pool.problem = error.message
            pool.demand.note_failed(self.clock())
            self.slots.stock.health.failed(slot.node_id, slot.id, pool.shape.container.image, error)
            if slot.node_id is None or isinstance(error, Unavailable | DeadlineExceeded):
                self.end(slot)  # it may be dead, or hold what it could not finish
            else:
                self.slots.put(slot)
            return
        finally:
            pool.forget(making)
        slot.prepared, slot.container = pool.shape.container, ready
        self.slots.stock.health.started(slot.node_id, pool.shape.container.image)
        pool.problem = None
        pool.demand.note_made(self.clock() - began)
        if pool.over:
            self.end_surplus(pool, slot)
            return
        kept = pool.ready[slot.id] = ReadySlot(slot, self.clock())
        kept.watch = self._supervise(partial(self._watch, pool, slot), "watch ready slot")

    async def _placed(self, slot: Slot) -> None:
        try:
            async with asyncio.timeout(_PLACED_S):
                await self.maker.placed(slot)
        except TimeoutError:
            raise Unavailable(f"its sandbox actor did not come up within {_PLACED_S:g} s") from None

    async def _watch(self, pool: KeptPool, slot: Slot) -> None:
        """Notices when a ready slot is lost, or only its container."""
        while True:
            try:
                why = await self.call(slot.handle, "unready")
            except Unavailable as error:
                if is_gone(error):
                    break
                await asyncio.sleep(_RETRY_S)
                continue
            log.warning("slot %s is not ready any more: %s", slot.id, why)
            break
        ready = pool.ready.pop(slot.id, None)
        if ready is not None:
            ready.watch = None  # this very task
            self.end(slot)
            self.changed()

    async def _empty(self, slot: Slot) -> None:
        try:
            await self.call(slot.handle, "release", timeout_s=_RELEASE_S)
        except ShoalError:
            self.end(slot)
        else:
            slot.prepared = slot.container = None
            self.slots.put(slot)

    async def _release(self, node_id: str, slot_id: str) -> None:
        with suppress(ShoalError):  # then the node sweeps it
            await self.call(self.nodes.handle(node_id), "release_containers", [slot_id], timeout_s=_RELEASE_S)

    def _supervise(
        self, work: Callable[[], Awaitable[None]], name: str, failed: Callable[[Exception], None] | None = None
    ) -> asyncio.Task[None]:
        task = tasks.supervise(work, name, attempts=1, failed=failed)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task
