"""Brings sandboxes up, watches them to their end, and takes up those that an earlier controller left.

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
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.actors.controller.endings import (
    ON_REQUEST,
    ended_error,
    failed_start,
    given_up,
    node_lost,
    too_late,
    vanished,
)
from shoal.actors.controller.figures import Figures
from shoal.actors.controller.ledger import Ledger, audited, created, entered, may_be_written
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.registry import Registry
from shoal.actors.controller.slots import Slot, SlotPool
from shoal.actors.controller.takeover import Takeover
from shoal.actors.handles import call, is_gone
from shoal.actors.messages import OCCUPIED, Began, End
from shoal.model.access import AuditEntry, Caller
from shoal.model.errors import DeadlineExceeded, FailedPrecondition, SandboxNotFound, ShoalError, Unavailable
from shoal.model.states import Event, State

log = logging.getLogger("shoal.lifecycles")

_RETRY_S = 0.2
_START_ATTEMPTS = 3


@dataclass(slots=True)
class Lifecycles:
    """The running half of the controller: one task per living sandbox."""

    registry: Registry
    ledger: Ledger
    pool: SlotPool
    takeover: Takeover
    figures: Figures
    call: Callable[..., Awaitable[Any]] = call
    _slots: dict[str, Slot] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _creating: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _waiting: set[str] = field(default_factory=set)
    _removals: set[asyncio.Task[None]] = field(default_factory=set)

    # -- bringing up --------------------------------------------------------------------------------

    def begin(self, record: SandboxRecord, audit: Sequence[AuditEntry] = ()) -> None:
        """Sets out to bring an accepted sandbox up by its deadline, which puts it on record first. Where it fails it has ended and nothing
        is left."""
        self._go_on(record, self._create(record, audit))

    async def accepted(self, record: SandboxRecord) -> None:
        """Waits until it is on record; raises what kept it from that."""
        task = self._creating.get(record.id)
        if task is None or record.accepted.is_set():
            return
        accepted = asyncio.ensure_future(record.accepted.wait())
        try:
            await asyncio.wait([task, accepted], return_when=asyncio.FIRST_COMPLETED)
        finally:
            accepted.cancel()
        if not record.accepted.is_set():
            task.result()

    async def running(self, record: SandboxRecord, timeout_s: float) -> None:
        """Waits until what was begun has succeeded, or raises what it failed with; `DeadlineExceeded` where that takes longer than this
        caller has, though not the create itself."""
        task = self._creating.get(record.id)
        if task is None:
            return
        done, _ = await asyncio.wait([task], timeout=timeout_s)
        if not done:
            raise DeadlineExceeded(
                f"{record.id} is still being made for an earlier call with the same key; ask again, with a longer deadline",
                field="deadline",
            )
        if record.end is not None and task.cancelled():  # terminated while it waited for room
            raise ended_error(record)
        task.result()

    def _go_on(self, record: SandboxRecord, work: Coroutine[Any, Any, None]) -> None:
        task = self._creating[record.id] = asyncio.create_task(work)

        def settle(done: asyncio.Task[None]) -> None:
            self._creating.pop(record.id, None)
            error = None if done.cancelled() else done.exception()  # seen, also where nobody waits
            if error is not None and not isinstance(error, ShoalError):
                log.error("making %s: %r", record.id, error)

        task.add_done_callback(settle)

    async def _create(self, record: SandboxRecord, audit: Sequence[AuditEntry]) -> None:
        slot = self.pool.take_idle(record.spec.slot_shape)
        happened = [created(record)]
        if slot is not None:
            self._place(record, slot)  # one write for both: its acceptance, and where it is going to be
            happened.append(entered(record))
        try:
            await self.ledger.put(record, *happened, audit=audit)
        except ShoalError as error:
            if slot is not None:
                self._free(record, slot)
            if may_be_written(error):
                # The next controller would bring it up beside what its key gives by then: that it has ended is written after it.
                self.registry.release_key(record)
                await self._finish(record, failed_start(error))
            else:
                self.registry.retract(record)
            raise
        record.accepted.set()
        self.figures.accepted(record)
        await self._bring_up(record, slot)

    async def _bring_up(self, record: SandboxRecord, slot: Slot | None) -> None:
        """From `slot`, which is on record, or the next that is free."""
        attempts = 0
        try:
            while True:
                if slot is None:
                    slot = await self._room(record)
                    await self._assign(record, slot)
                try:
                    await self._start(record, slot)
                    return
                except Unavailable as error:
                    # An idle slot may have died unnoticed, any number of them. What it began is removed by now: another takes over.
                    attempts += slot.idle_since == 0.0
                    if not is_gone(error) or attempts == _START_ATTEMPTS:
                        raise
                    slot = None
        except ShoalError as error:
            if not record.ended:
                self.registry.release_key(record)
                await self._finish(record, failed_start(error))
            raise

    async def _room(self, record: SandboxRecord) -> Slot:
        """The next free slot. Nothing of the sandbox is anywhere while it waits in here: here, and nowhere else, its making may be cancelled."""
        if record.ended_by is not None:  # asked for while an earlier slot had it
            await self._finish(record, given_up(ON_REQUEST))
            raise ended_error(record)
        self._waiting.add(record.id)
        try:
            return await self.pool.take(record.spec.slot_shape, max(0.0, record.deadline - time.time()))
        finally:
            self._waiting.discard(record.id)

    def _place(self, record: SandboxRecord, slot: Slot) -> None:
        record.slot_id = slot.id
        self._slots[record.id] = slot
        if record.life.state is State.PENDING:
            record.life.apply(Event.PLACE, time.time())

    async def _assign(self, record: SandboxRecord, slot: Slot) -> None:
        """Puts on record which slot is about to start it."""
        first = record.life.state is State.PENDING
        self._place(record, slot)
        try:
            await self.ledger.put(record, *([entered(record)] if first else []))
        except ShoalError:
            self._free(record, slot)
            raise

    async def _start(self, record: SandboxRecord, slot: Slot) -> None:
        try:
            began: Began = await self.call(
                slot.handle, "start", record.id, record.spec, timeout_s=max(0.1, record.deadline - time.time())
            )
        except DeadlineExceeded:
            self._abandon(record, slot)
            raise DeadlineExceeded(
                "the sandbox did not start in time; nothing of it is left. Allow more with deadline="
            ) from None
        except Unavailable as error:
            if not is_gone(error):
                self._abandon(record, slot)  # it may have begun all the same
                raise
            self._slots.pop(record.id, None)
            self.pool.discard(slot)
            await self.takeover.remove(record.id, slot.node_id)
            raise
        except FailedPrecondition as error:
            if error.state != OCCUPIED:
                self._free(record, slot)
                raise
            self._slots.pop(record.id, None)
            self.pool.discard(slot)  # it would refuse whatever comes next, too
            raise Unavailable(error.message, actor="gone") from None
        except ShoalError:
            self._free(record, slot)
            raise
        record.began = began
        record.life.apply(Event.READY, time.time())
        self.figures.started(record)
        self._tasks[record.id] = asyncio.create_task(self._watch(record, slot))
        await self.ledger.keep(record, entered(record))

    def _abandon(self, record: SandboxRecord, slot: Slot) -> None:
        """A start of which nobody knows what came: its slot is not trusted any more, and what it made is removed."""
        self._slots.pop(record.id, None)
        self.pool.discard(slot)
        removal = asyncio.create_task(self.takeover.remove(record.id, slot.node_id))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)

    def _free(self, record: SandboxRecord, slot: Slot) -> None:
        """A start that failed cleanly, or was not even tried: the slot takes the next."""
        self._slots.pop(record.id, None)
        self.pool.put(slot)

    # -- ending -------------------------------------------------------------------------------------

    async def terminate(self, record: SandboxRecord, message: str, by: Caller) -> None:
        """Ends a sandbox and returns once it has ended. Where the store goes away meanwhile, that is on record as soon as it is back.
        Raises what kept the sandbox off the record (then there is nothing of it), or the wish for its end (then it lives on)."""
        await self.accepted(record)  # or the wish might come to be on record alone
        if not record.ended:
            await self._note_end(record, by)
            await self._bring_down(record, message)
        await record.settled.wait()

    async def _note_end(self, record: SandboxRecord, by: Caller) -> None:
        """The intent: who wants its end. A controller that is restarted now will end it."""
        entry = audited("sandbox.terminate", by, target=record.id, environment=record.spec.environment)
        await self.ledger.put(record, audit=[entry], change=lambda: {"ended_by": record.ended_by or by.token})

    async def _bring_down(self, record: SandboxRecord, message: str) -> None:
        creating = self._creating.get(record.id)
        if creating is not None:
            if record.id in self._waiting:  # first of all it must not find room any more
                creating.cancel()
                await self._finish(record, given_up(message))
                return
            await asyncio.wait([creating])
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
        if record.began is not None:
            await self.takeover.remove(record.id, record.began.node_id)
        await self._finish(record, end)

    async def _watch(self, record: SandboxRecord, slot: Slot | None) -> None:
        """Waits for the sandbox's end, through any number of slots; None: its slot was lost."""
        while True:
            if slot is None:
                self._slots.pop(record.id, None)
                adopted = await self.takeover.adopt(record)
                if isinstance(adopted, End):
                    await self._finish(record, adopted)
                    return
                slot = self._slots[record.id] = adopted
                record.slot_id = slot.id
                await self.ledger.keep(record)
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
        await self.ledger.caught_up(
            record
        )  # until then nobody but its slot could tell the next controller how it ended
        self._slots.pop(record.id, None)
        try:
            await self.call(slot.handle, "wipe", record.id, timeout_s=30)
        except ShoalError:
            self.pool.discard(slot)
        else:
            self.pool.put(slot)

    async def lose_node(self, node_id: str) -> None:
        """A machine is gone, and its sandboxes with it."""
        for record in self.registry.live():
            if record.began is not None and record.began.node_id == node_id:
                task = self._tasks.pop(record.id, None)
                if task is not None:
                    task.cancel()
                self._slots.pop(record.id, None)
                await self._finish(record, node_lost())

    async def _finish(self, record: SandboxRecord, end: End) -> None:
        if record.ended:
            return
        record.finish(end, time.time())
        self._tasks.pop(record.id, None)
        self.registry.settle(record)
        self.figures.ended(record)
        try:
            await self.ledger.keep(record, entered(record))
        finally:
            record.settled.set()

    # -- after a restart ----------------------------------------------------------------------------

    def resume(self, record: SandboxRecord, slot: Slot | None) -> None:
        """Goes on with a living sandbox that is on record. `slot`: the one on record with it, if that lives and holds it."""
        if record.began is not None:
            if slot is not None:
                self._slots[record.id] = slot
            self._tasks[record.id] = asyncio.create_task(self._watch(record, slot))
            if record.ended_by is not None:
                self._go_on_ending(record)
        elif record.ended_by is not None:
            self._go_on(record, self._undo(record, slot, given_up(ON_REQUEST)))
        elif record.deadline <= time.time():
            self._go_on(record, self._undo(record, slot, too_late()))
        else:
            self._go_on(record, self._make_again(record, slot))

    async def _make_again(self, record: SandboxRecord, slot: Slot | None) -> None:
        """Half made. Its slot goes on with it where there is one; else what there may be of it is removed, and it begins anew."""
        if slot is not None:
            self._slots[record.id] = slot
        elif record.slot_id is not None:
            await self.takeover.remove(record.id, None)
        await self._bring_up(record, slot)

    async def _undo(self, record: SandboxRecord, slot: Slot | None, end: End) -> None:
        if slot is not None:
            self.pool.discard(slot)
        if record.slot_id is not None:
            await self.takeover.remove(record.id, None)
        self.registry.release_key(record)
        await self._finish(record, end)

    def _go_on_ending(self, record: SandboxRecord) -> None:
        ending = asyncio.create_task(self._bring_down(record, ON_REQUEST))
        self._removals.add(ending)
        ending.add_done_callback(self._removals.discard)
