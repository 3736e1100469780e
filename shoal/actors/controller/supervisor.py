"""Watches sandboxes to their end, ends them, and takes up those that an earlier controller left. `launcher.py` brings them up.

The order is always: write the intent, act, write what came of it. So a controller that is killed anywhere finds on record what it was
about to do:

    pending                 nothing of it exists; it waits for room
    starting, with a slot   the slot may hold it, may have begun its container, or may know nothing of it
    running                 its container lives, or has just ended; its slot, if that lives, knows how
    ended_by set, no end    somebody asked for its end: it is ended

and of each it does what is left to do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from shoal.actors.controller.adoption import Adoption
from shoal.actors.controller.endings import ON_REQUEST, given_up, node_lost, too_late, vanished
from shoal.actors.controller.launcher import Launcher
from shoal.actors.controller.metrics import Metrics
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.record_writer import RecordWriter, audited, entered
from shoal.actors.controller.registry import Registry
from shoal.actors.controller.slots import Slot, SlotPool
from shoal.actors.handles import call, is_gone
from shoal.actors.messages import End
from shoal.model import verbs
from shoal.model.access import Caller
from shoal.model.errors import SandboxNotFound, ShoalError, Unavailable

_RETRY_S = 0.2


@dataclass(slots=True)
class SandboxSupervisor:
    """The running half of the controller: one task per living sandbox, of `launcher` until it runs, and then of its own."""

    registry: Registry
    writer: RecordWriter
    pool: SlotPool
    adoption: Adoption
    metrics: Metrics
    call: Callable[..., Awaitable[Any]] = call
    _slots: dict[str, Slot] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _endings: set[asyncio.Task[None]] = field(default_factory=set)
    launcher: Launcher = field(init=False)

    def __post_init__(self) -> None:
        self.launcher = Launcher(
            self.registry,
            self.writer,
            self.pool,
            self.adoption,
            self.metrics,
            self.call,
            self._slots,
            watch=self._begin_watching,
            finish=self._finish,
        )

    # -- ending -------------------------------------------------------------------------------------

    async def terminate(self, record: SandboxRecord, message: str, by: Caller) -> None:
        """Ends a sandbox and returns once it has ended. Where the store goes away meanwhile, that is on record as soon as it is back.
        Raises what kept the sandbox off the record (then there is nothing of it), or the wish for its end (then it lives on)."""
        await self.launcher.accepted(record)  # or the wish might come to be on record alone
        if not record.ended:
            await self._note_end(record, by)
            await self._bring_down(record, message)
        await record.settled.wait()

    async def _note_end(self, record: SandboxRecord, by: Caller) -> None:
        """The intent: who wants its end. A controller that is restarted now will end it."""
        entry = audited(verbs.terminate, by, target=record.id, environment=record.spec.environment)
        await self.writer.put(record, audit=[entry], change=lambda: {"ended_by": record.ended_by or by.token})

    async def _bring_down(self, record: SandboxRecord, message: str) -> None:
        await self.launcher.stop(record, given_up(message))
        while not record.ended:
            slot = self._slots.get(record.id)
            if slot is None:
                await self._take_away(record, given_up(message))
                return
            try:
                await self.call(slot.handle, "terminate", record.id, message)
                return
            except Unavailable:
                await asyncio.sleep(_RETRY_S)  # its slot died: it is being recovered, then ended
            except SandboxNotFound:
                return  # it has just ended, as its watch is about to tell

    async def _take_away(self, record: SandboxRecord, end: End) -> None:
        """Ends one that no slot holds: the next waits for room to take it over, perhaps for ever."""
        watch = self._tasks.pop(record.id, None)
        if watch is not None:
            watch.cancel()
            await asyncio.wait([watch])
        if record.started is not None:
            await self.adoption.remove(record.id, record.started.node_id)
        await self._finish(record, end)

    def _begin_watching(self, record: SandboxRecord, slot: Slot | None) -> None:
        self._tasks[record.id] = asyncio.create_task(self._watch(record, slot))

    async def _watch(self, record: SandboxRecord, slot: Slot | None) -> None:
        """Waits for the sandbox's end, through any number of slots; None: its slot was lost."""
        while True:
            if slot is None:
                self._slots.pop(record.id, None)
                adopted = await self.adoption.adopt(record)
                if isinstance(adopted, End):
                    await self._finish(record, adopted)
                    return
                slot = self._slots[record.id] = adopted
                record.slot_id = slot.id
                await self.writer.keep(record)
            try:
                end: End = await self.call(slot.handle, "ended", record.id)
                break
            except Unavailable as error:
                if is_gone(error):
                    slot = None
                else:
                    await asyncio.sleep(_RETRY_S)
            except SandboxNotFound:
                end = vanished(record, "its actor does not hold it any more")
                break
        await self._finish(record, end)
        # Until that is on record nobody but its slot could tell the next controller.
        await self.writer.caught_up(record)
        self._slots.pop(record.id, None)
        try:
            await self.call(slot.handle, "wipe", record.id, timeout_s=30)
        except ShoalError:
            self.pool.discard(slot)
        else:
            self.pool.put(slot)

    async def lose_node(self, node_id: str) -> None:
        """A machine is gone, and its sandboxes with it, all at once."""
        gone = [r for r in self.registry.live() if r.started is not None and r.started.node_id == node_id]
        for record in gone:
            task = self._tasks.pop(record.id, None)
            if task is not None:
                task.cancel()
            self._slots.pop(record.id, None)
        await asyncio.gather(*(self._finish(record, node_lost()) for record in gone))

    async def _finish(self, record: SandboxRecord, end: End) -> None:
        if record.ended:
            return
        record.finish(end, time.time())
        self._tasks.pop(record.id, None)
        self.registry.settle(record)
        self.metrics.ended(record)
        try:
            await self.writer.keep(record, entered(record))
        finally:
            record.settled.set()

    # -- after a restart ----------------------------------------------------------------------------

    def resume(self, record: SandboxRecord, slot: Slot | None) -> None:
        """Goes on with a living sandbox that is on record. `slot`: the one on record with it, if that lives and holds it."""
        if record.started is not None:
            if slot is not None:
                self._slots[record.id] = slot
            self._begin_watching(record, slot)
            if record.ended_by is not None:
                self._go_on_ending(record)
        elif record.ended_by is not None:
            self.launcher.undo(record, slot, given_up(ON_REQUEST))
        elif record.deadline <= time.time():
            self.launcher.undo(record, slot, too_late())
        else:
            self.launcher.go_on(record, slot)

    def _go_on_ending(self, record: SandboxRecord) -> None:
        ending = asyncio.create_task(self._bring_down(record, ON_REQUEST))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
