"""Writes to the controller's store: each change together with its events and audit entries."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shoal.actors.controller.events import EventLog
from shoal.actors.controller.record import SandboxRecord, to_row, with_changes
from shoal.actors.controller.store import Change, Store
from shoal.actors.messages import OVERTAKEN
from shoal.model import tasks, verbs
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


@dataclass(slots=True, eq=False)
class _Write:
    """A write of a sandbox that is under way, or waits for its turn. `kept`: as `RecordWriter.keep`; `done`: its
    caller's, who may be gone."""

    record: SandboxRecord
    happened: Sequence[Happened]
    audit: Sequence[AuditEntry]
    change: Callable[[], dict[str, Any]] | None
    kept: bool
    done: asyncio.Future[None]


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
        self._waiting: dict[str, deque[_Write]] = {}  # behind the one that is under way
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
        await self._in_turn(record, happened, audit, change, kept=False)

    async def keep(self, record: SandboxRecord, *happened: Happened, audit: Sequence[AuditEntry] = ()) -> None:
        """As `put`, for what has already happened and cannot be refused: if the store is away, it is written as soon as
        the store is back, before any later change of the sandbox."""
        await self._in_turn(record, happened, audit, None, kept=True)

    async def request_end(self, record: SandboxRecord, by: Caller) -> None:
        """Puts on record who asked for its end: a controller that is restarted then will end it. It can be refused
        where files go with it; else it ends meanwhile, whatever becomes of the record: as its slot would tell."""
        entry = audited(verbs.terminate, by, target=record.id, environment=record.spec.environment)
        if record.spec.persistent:
            await self.put(record, audit=[entry], change=lambda: {"ended_by": record.ended_by or by.token})
        else:
            record.ended_by = record.ended_by or by.token
            await self.keep(record, audit=[entry])

    async def caught_up(self, record: SandboxRecord) -> None:
        """Waits until all its changes are on record."""
        late = self._late.get(record.id)
        if late is not None:
            await late.over.wait()

    async def write(self, change: Change) -> None:
        """Returns once it is written."""
        done = self._begun()
        self._send(change, partial(self._finish, done))
        await done

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
        await self._see_through(self.store.expire(before))

    async def expire_usage(self, before: int) -> None:
        """Has the store forget the sums of use of hours before that one."""
        await self._see_through(self.store.expire_usage(before))

    # Four writes are in each sandbox's life: so they are done by callbacks, without a task of their own. They go on
    # if their callers are cancelled, for those wait only for a future.

    def _in_turn(
        self,
        record: SandboxRecord,
        happened: Sequence[Happened],
        audit: Sequence[AuditEntry],
        change: Callable[[], dict[str, Any]] | None,
        *,
        kept: bool,
    ) -> asyncio.Future[None]:
        write = _Write(record, happened, audit, change, kept, self._begun())
        waiting = self._waiting.get(record.id)
        if waiting is None:
            self._waiting[record.id] = deque()
            self._begin(write)
        else:
            waiting.append(write)
        return write.done

    def _begin(self, write: _Write) -> None:
        """Its turn has come. The changes that are still unwritten are written with it."""
        record, happened, audit = write.record, write.happened, write.audit
        late = self._late.get(record.id)
        if late is not None:
            happened, audit = [*late.happened, *happened], [*late.audit, *audit]
        try:
            changed = {} if write.change is None else write.change()
            row = to_row(with_changes(record, changed) if changed else record)
        except Exception as error:
            if not isinstance(error, ShoalError):  # which is its caller's
                log.exception("%s", record.id)
            self._over(write, error)
            return
        now = time.time()
        events = [self.events.draft(now, record.spec.environment, record.id, kind, data) for kind, data in happened]
        self._send(Change(sandboxes=(row,), events=events, audit=audit), partial(self._written, write, changed, late))

    def _written(
        self, write: _Write, changed: dict[str, Any], late: Unwritten | None, error: BaseException | None
    ) -> None:
        if error is None:
            if late is not None:
                self._forget(late)
            for name, value in changed.items():
                setattr(write.record, name, value)
        elif write.kept and isinstance(error, ShoalError):
            self._put_off(write, error)
            error = None
        self._over(write, error)

    def _over(self, write: _Write, error: BaseException | None) -> None:
        """Tells its caller, and begins the next of the same sandbox."""
        self._finish(write.done, error)
        waiting = self._waiting[write.record.id]
        if waiting:
            self._begin(waiting.popleft())
        else:
            del self._waiting[write.record.id]

    def _put_off(self, write: _Write, error: ShoalError) -> None:
        log.warning("%s is not on record yet: %s", write.record.id, error)
        late = self._late.setdefault(write.record.id, Unwritten(write.record))
        late.happened += write.happened
        late.audit += write.audit
        if self._catching_up is None:
            self._catching_up = tasks.supervise(self._catch_up, "catch up")

    def _send(self, change: Change, then: Callable[[BaseException | None], None]) -> None:
        """Has the store write it, and publishes its events. `then` is told the error, if that failed."""

        def settle(written: asyncio.Future[None]) -> None:
            error = asyncio.CancelledError() if written.cancelled() else written.exception()
            if error is None:
                self.events.publish(change.events)
            else:
                self.events.drop(change.events)
            then(None if error is None else self._as_owner(error))

        try:
            written = self.store.write(change)
        except Exception as error:
            if not isinstance(error, ShoalError):  # such as: the store is closed
                log.exception("a change that no store takes")
            self.events.drop(change.events)
            then(self._as_owner(error))
        else:
            written.add_done_callback(settle)

    def _begun(self) -> asyncio.Future[None]:
        self._writing += 1
        return asyncio.get_running_loop().create_future()

    def _finish(self, done: asyncio.Future[None], error: BaseException | None) -> None:
        self._writing -= 1
        if not self._writing:
            self._idle.set()
        if done.done():  # its caller is gone
            if error is not None and not isinstance(error, ShoalError):
                log.error("a write failed, and nobody waits for it: %r", error)
        elif error is None:
            done.set_result(None)
        elif isinstance(error, asyncio.CancelledError):
            done.cancel()
        else:
            done.set_exception(error)

    def _as_owner(self, error: BaseException) -> BaseException:
        """What its caller is told, of an error of what only the cluster's current controller may do."""
        if not isinstance(error, FailedPrecondition) or error.state != OVERTAKEN:
            return error  # a store that is damaged, say: another controller could do no more
        self._overtaken()
        return Unavailable(f"this controller is not the cluster's any more ({error}); try again")

    async def _see_through(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except FailedPrecondition as error:
            raise self._as_owner(error) from None

    async def _catch_up(self) -> None:
        while self._late:
            await asyncio.sleep(_RETRY_S)
            for late in list(self._late.values()):
                if self._late.get(late.record.id) is late and not await self._caught_up(late):
                    break
        self._catching_up = None

    async def _caught_up(self, late: Unwritten) -> bool:
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
