"""Brings sandboxes up: from acceptance, or from what an earlier controller left half made, until they run or have failed.

One task for each. Until it runs, nobody but that task ends a sandbox, unless it waits for room: then nothing of it is anywhere yet.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.actors.controller.adoption import Adoption
from shoal.actors.controller.endings import ON_REQUEST, ended_error, failed_start, given_up
from shoal.actors.controller.metrics import Metrics
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.record_writer import RecordWriter, created, entered, may_be_written
from shoal.actors.controller.registry import Registry
from shoal.actors.controller.slots import Slot, SlotPool
from shoal.actors.handles import is_gone
from shoal.actors.messages import OCCUPIED, End, SandboxStarted
from shoal.model.access import AuditEntry
from shoal.model.errors import DeadlineExceeded, FailedPrecondition, ShoalError, Unavailable
from shoal.model.states import Event, State

log = logging.getLogger("shoal.launcher")

_ATTEMPTS = 3


@dataclass(slots=True)
class Launcher:
    """`slots`: which one has which sandbox, be it starting or running; `watch` is told what runs, `finish` what has ended."""

    registry: Registry
    writer: RecordWriter
    pool: SlotPool
    adoption: Adoption
    metrics: Metrics
    call: Callable[..., Awaitable[Any]]
    slots: dict[str, Slot]
    watch: Callable[[SandboxRecord, Slot], None]
    finish: Callable[[SandboxRecord, End], Awaitable[None]]
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _waiting: set[str] = field(default_factory=set)
    _removals: set[asyncio.Task[None]] = field(default_factory=set)

    def begin(self, record: SandboxRecord, audit: Sequence[AuditEntry] = ()) -> None:
        """Sets out to bring an accepted sandbox up by its deadline, which puts it on record first. Where it fails it has ended and nothing
        is left."""
        self._carry_out(record, self._create(record, audit))

    def go_on(self, record: SandboxRecord, slot: Slot | None) -> None:
        """With one that is half made: its slot goes on where that lives and holds it; else what there may be is removed, and it begins anew."""
        self._carry_out(record, self._make_again(record, slot))

    def undo(self, record: SandboxRecord, slot: Slot | None, end: End) -> None:
        """Ends one that is half made."""
        self._carry_out(record, self._undo(record, slot, end))

    async def accepted(self, record: SandboxRecord) -> None:
        """Waits until it is on record; raises what kept it from that."""
        task = self._tasks.get(record.id)
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
        task = self._tasks.get(record.id)
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

    async def stop(self, record: SandboxRecord, end: End) -> None:
        """Waits until it is made or has failed; one that waits for room has ended with `end`."""
        task = self._tasks.get(record.id)
        if task is None:
            return
        if record.id in self._waiting:
            task.cancel()  # first of all it must not find room any more
            await self.finish(record, end)
        else:
            await asyncio.wait([task])

    def _carry_out(self, record: SandboxRecord, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[record.id] = asyncio.create_task(work)

        def settle(done: asyncio.Task[None]) -> None:
            self._tasks.pop(record.id, None)
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
            await self.writer.put(record, *happened, audit=audit)
        except ShoalError as error:
            if slot is not None:
                self._free(record, slot)
            if may_be_written(error):
                # The next controller would bring it up beside what its key gives by then: that it has ended is written after it.
                self.registry.release_key(record)
                await self.finish(record, failed_start(error))
            else:
                self.registry.retract(record)
            raise
        record.accepted.set()
        self.metrics.accepted(record)
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
                    # An idle slot may have died unnoticed, any number of them. What it started is removed by now: another takes over.
                    attempts += slot.idle_since == 0.0
                    if not is_gone(error) or attempts == _ATTEMPTS:
                        raise
                    slot = None
        except ShoalError as error:
            if not record.ended:
                self.registry.release_key(record)
                await self.finish(record, failed_start(error))
            raise

    async def _room(self, record: SandboxRecord) -> Slot:
        """The next free slot. Nothing of the sandbox is anywhere while it waits in here: here, and nowhere else, its making may be cancelled."""
        if record.ended_by is not None:  # asked for while an earlier slot had it
            await self.finish(record, given_up(ON_REQUEST))
            raise ended_error(record)
        self._waiting.add(record.id)
        try:
            return await self.pool.take(record.spec.slot_shape, max(0.0, record.deadline - time.time()))
        finally:
            self._waiting.discard(record.id)

    def _place(self, record: SandboxRecord, slot: Slot) -> None:
        record.slot_id = slot.id
        self.slots[record.id] = slot
        if record.life.state is State.PENDING:
            record.life.apply(Event.PLACE, time.time())

    async def _assign(self, record: SandboxRecord, slot: Slot) -> None:
        """Puts on record which slot is about to start it."""
        first = record.life.state is State.PENDING
        self._place(record, slot)
        try:
            await self.writer.put(record, *([entered(record)] if first else []))
        except ShoalError:
            self._free(record, slot)
            raise

    async def _start(self, record: SandboxRecord, slot: Slot) -> None:
        try:
            started: SandboxStarted = await self.call(
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
            self._discard(record, slot)
            await self.adoption.remove(record.id, slot.node_id)
            raise
        except FailedPrecondition as error:
            if error.state != OCCUPIED:
                self._free(record, slot)
                raise
            self._discard(record, slot)  # it would refuse whatever comes next, too
            raise Unavailable(error.message, actor="gone") from None
        except ShoalError:
            self._free(record, slot)
            raise
        record.started = started
        record.life.apply(Event.READY, time.time())
        self.metrics.started(record)
        self.watch(record, slot)
        await self.writer.keep(record, entered(record))

    def _abandon(self, record: SandboxRecord, slot: Slot) -> None:
        """A start of which nobody knows what came: its slot is not trusted any more, and what it made is removed."""
        self._discard(record, slot)
        removal = asyncio.create_task(self.adoption.remove(record.id, slot.node_id))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)

    def _discard(self, record: SandboxRecord, slot: Slot) -> None:
        self.slots.pop(record.id, None)
        self.pool.discard(slot)

    def _free(self, record: SandboxRecord, slot: Slot) -> None:
        """A start that failed cleanly, or was not even tried: the slot takes the next."""
        self.slots.pop(record.id, None)
        self.pool.put(slot)

    async def _make_again(self, record: SandboxRecord, slot: Slot | None) -> None:
        if slot is not None:
            self.slots[record.id] = slot
        elif record.slot_id is not None:
            await self.adoption.remove(record.id, None)
        await self._bring_up(record, slot)

    async def _undo(self, record: SandboxRecord, slot: Slot | None, end: End) -> None:
        if slot is not None:
            self.pool.discard(slot)
        if record.slot_id is not None:
            await self.adoption.remove(record.id, None)
        self.registry.release_key(record)
        await self.finish(record, end)
