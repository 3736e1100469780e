"""Writes to the controller's store: each change together with its events and audit entries."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.actors.controller.events import EventLog
from shoal.actors.controller.record import SandboxRecord, to_row, with_changes
from shoal.actors.controller.store import Change, Store
from shoal.actors.messages import OVERTAKEN
from shoal.model import tasks
from shoal.model.access import AuditEntry, Caller
from shoal.model.errors import FailedPrecondition, Internal, ShoalError, Unavailable
from shoal.model.states import State
from shoal.model.verbs import Verb

log = logging.getLogger("shoal.record_writer")

_RETRY_S = 1.0

Happened = tuple[str, dict[str, Any]]
"""An event's kind and data."""


@dataclass(slots=True)
class Unwritten:
    """Changes of a sandbox that could not be written yet. `over` is set once they are, or are given up."""

    record: SandboxRecord
    happened: list[Happened] = field(default_factory=list)
    audit: list[AuditEntry] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class RecordWriter:
    """Writes to the store and publishes the events. `overtaken` is called when another controller has opened the
    store."""

    def __init__(self, store: Store, events: EventLog, overtaken: Callable[[], None]) -> None:
        self.store = store
        self.events = events
        self._overtaken = overtaken
        self._writing = 0
        self._idle = asyncio.Event()
        # One write per sandbox at a time: each writes the whole row, so the outcome of the last one must be known.
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._late: dict[str, Unwritten] = {}
        self._catching_up: asyncio.Task[None] | None = None

    async def put(
        self,
        record: SandboxRecord,
        *happened: Happened,
        audit: Sequence[AuditEntry] = (),
        change: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        """Returns once the record and its events are on disk. `Unavailable` if nothing was written, or
        (`may_be_written`) if that is not known.

        `change`: attributes of the record that this write changes. They change in memory once they are on disk: nobody
        sees, and no other write contains, what may yet be refused.
        """
        await self._see_through(self._put(record, happened, audit, change))

    async def keep(self, record: SandboxRecord, *happened: Happened, audit: Sequence[AuditEntry] = ()) -> None:
        """As `put`, for what has already happened and cannot be refused: if the store is away, it is written as soon as
        the store is back, before any later change of the sandbox."""
        await self._see_through(self._keep(record, happened, audit))

    async def caught_up(self, record: SandboxRecord) -> None:
        """Waits until all its changes are on record."""
        late = self._late.get(record.id)
        if late is not None:
            await late.over.wait()

    async def write(self, change: Change) -> None:
        """Returns once it is written."""
        await self._see_through(self._write(change))

    async def close(self) -> None:
        """Waits for the writes under way, and closes the store."""
        if self._catching_up is not None:
            self._catching_up.cancel()
        try:
            while self._writing:
                self._idle.clear()
                await self._idle.wait()
        finally:
            await self.store.close()

    async def expire(self, before: float) -> None:
        """Has the store forget what ended before that time. An overtaken controller that writes nothing else notices it
        here."""
        await self._as_owner(self.store.expire(before))

    async def expire_usage(self, before: int) -> None:
        """Has the store forget the sums of use of hours before that one."""
        await self._as_owner(self.store.expire_usage(before))

    async def _see_through(self, work: Coroutine[Any, Any, None]) -> None:
        """A write goes on if its caller is cancelled."""
        self._writing += 1
        task = tasks.shared(work, "write")
        task.add_done_callback(self._count_off)
        await asyncio.shield(task)

    def _count_off(self, _: asyncio.Task[None]) -> None:
        self._writing -= 1
        if not self._writing:
            self._idle.set()

    async def _put(
        self,
        record: SandboxRecord,
        happened: Sequence[Happened],
        audit: Sequence[AuditEntry],
        change: Callable[[], dict[str, Any]] | None,
    ) -> None:
        async with self._turn(record):
            await self._put_in_turn(record, happened, audit, {} if change is None else change())

    async def _keep(self, record: SandboxRecord, happened: Sequence[Happened], audit: Sequence[AuditEntry]) -> None:
        async with self._turn(record):
            try:
                await self._put_in_turn(record, happened, audit, {})
            except ShoalError as error:
                log.warning("%s is not on record yet: %s", record.id, error)
                late = self._late.setdefault(record.id, Unwritten(record))
                late.happened += happened
                late.audit += audit
                if self._catching_up is None:
                    self._catching_up = tasks.supervise(self._catch_up, "catch up")

    async def _put_in_turn(
        self,
        record: SandboxRecord,
        happened: Sequence[Happened],
        audit: Sequence[AuditEntry],
        changed: dict[str, Any],
    ) -> None:
        """Writes the changes that are still unwritten first."""
        late = self._late.get(record.id)
        if late is not None:
            happened, audit = [*late.happened, *happened], [*late.audit, *audit]
        row = to_row(with_changes(record, changed) if changed else record)
        now = time.time()
        events = [self.events.draft(now, record.spec.environment, record.id, kind, data) for kind, data in happened]
        await self._write(Change(sandboxes=(row,), events=events, audit=audit))
        if late is not None:
            self._forget(late)
        for name, value in changed.items():
            setattr(record, name, value)

    def _turn(self, record: SandboxRecord) -> asyncio.Lock:
        turn = self._turns.get(record.id)
        if turn is None:
            self._turns[record.id] = turn = asyncio.Lock()
        return turn

    async def _write(self, change: Change) -> None:
        try:
            await self._as_owner(self.store.write(change))
        except BaseException:
            self.events.drop(change.events)
            raise
        self.events.publish(change.events)

    async def _as_owner(self, work: Awaitable[Any]) -> None:
        """Does what only the cluster's current controller may do."""
        try:
            await work
        except FailedPrecondition as error:
            if error.state != OVERTAKEN:
                raise  # a store that is damaged, say: another controller could do no more
            self._overtaken()
            raise Unavailable(f"this controller is not the cluster's any more ({error}); try again") from None

    async def _catch_up(self) -> None:
        while self._late:
            await asyncio.sleep(_RETRY_S)
            for late in list(self._late.values()):
                if self._late.get(late.record.id) is late and not await self._written(late):
                    break
        self._catching_up = None

    async def _written(self, late: Unwritten) -> bool:
        """Tries again. False: the store is away, so the others need not try."""
        try:
            await self.put(late.record)
        except Unavailable as error:
            log.warning("the store is still away: %s", error)
            return False
        except Internal as error:  # the store cannot hold it, now or later
            log.warning("%s is given up: %s", late.record.id, error)
            self._forget(late)
        except ShoalError as error:
            log.warning("%s is not on record yet: %s", late.record.id, error)
        return True

    def _forget(self, late: Unwritten) -> None:
        self._late.pop(late.record.id, None)
        late.over.set()


def may_be_written(error: ShoalError) -> bool:
    """Whether the write that failed with `error` may have taken place all the same."""
    return error.fields.get("outcome") == "unknown"


def audited(
    verb: Verb[..., Any], by: Caller, *, target: str | None = None, environment: str | None = None, outcome: str = "ok"
) -> AuditEntry:
    """An entry for the audit log: that `by` did what the verb says just now. `environment`: where it was done, else the
    caller's own."""
    return AuditEntry(
        at=time.time(),
        action=verb.audit or verb.name,
        outcome=outcome,
        token=by.token,
        environment=by.environment if environment is None else environment,
        target=target,
        request_id=by.request_id,
        address=by.address,
    )


def created(record: SandboxRecord) -> Happened:
    return "created", {"token": record.created_by}


def entered(record: SandboxRecord) -> Happened:
    """The event for the state that it is in now."""
    data: dict[str, Any] = {}
    if record.started is not None:
        data["node_id"] = record.started.node_id
    told = record.stop if record.state is State.STOPPED else record.end
    if told is not None:
        data |= {"reason": told.reason.value, "returncode": told.returncode, "message": told.message}
    if record.end is not None:
        data["token"] = record.ended_by
    elif record.state is State.STARTING and record.stop is not None:
        data |= {"after": record.stop.reason.value, "restarts": record.restarts}
    return record.state.value, {name: value for name, value in data.items() if value is not None}
