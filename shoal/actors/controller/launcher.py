"""Brings a sandbox up: each step of a start as a plain coroutine that returns what it came to. `supervisor.py` says
which is next."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from shoal.actors.controller.phase import Event
from shoal.actors.controller.placement import request_for
from shoal.actors.controller.record_writer import RecordWriter, created, may_be_written
from shoal.actors.controller.run import Outcome, Run
from shoal.actors.controller.slots import SlotPool
from shoal.actors.handles import is_gone
from shoal.actors.messages import OCCUPIED, SandboxStarted
from shoal.model.errors import DeadlineExceeded, FailedPrecondition, ShoalError, Unavailable

ATTEMPTS = 3
"""New slots that may die starting one sandbox. Idle ones do not count: any number of them may have died unnoticed."""


@dataclass(slots=True)
class Launcher:
    """`call`: how actors are called."""

    writer: RecordWriter
    pool: SlotPool
    call: Callable[..., Awaitable[Any]]

    async def write_acceptance(self, run: Run) -> Outcome:
        """Puts the sandbox on record for the first time, with its slot if one was idle."""
        happened = [created(run.record)] if run.slot is None else [created(run.record), *run.news()]
        try:
            await self.writer.put(run.record, *happened, audit=run.audit)
        except ShoalError as error:
            return _not_written(error)
        return Outcome(Event.WRITTEN)

    async def find_slot(self, run: Run) -> Outcome:
        """Waits for a slot until the sandbox's deadline."""
        left_s = max(0.0, run.record.deadline - time.time())
        request = request_for(run.record.spec)
        run.record.waits_for = partial(self.pool.reason, request)
        try:
            slot = await self.pool.take(request, run.record.spec.environment, left_s)
        except ShoalError as error:
            return Outcome(Event.FAILED, error=error)
        finally:
            run.record.waits_for = None
        return Outcome(Event.SLOT_FOUND, slot=slot)

    async def write_slot(self, run: Run) -> Outcome:
        """Puts on record which slot is about to start it."""
        try:
            await self.writer.put(run.record, *run.news())
        except ShoalError as error:
            return _not_written(error)
        return Outcome(Event.WRITTEN)

    async def start(self, run: Run) -> Outcome:
        """Has the slot start it. The slot joins a start that it has made already."""
        assert run.slot is not None
        run.attempts += run.slot.idle_since == 0.0
        left_s = max(0.1, run.record.deadline - time.time())
        try:
            started: SandboxStarted = await self.call(
                run.slot.handle, "start", run.record.id, run.record.spec, timeout_s=left_s
            )
        except ShoalError as error:
            self.pool.stock.health.failed(run.slot.node_id, run.record.id, run.record.spec.image, error)
            return _not_started(run, error)
        self.pool.stock.health.started(run.slot.node_id, run.record.spec.image)
        return Outcome(Event.STARTED, started=started)


def _not_written(error: ShoalError) -> Outcome:
    return Outcome(Event.UNCLEAR_WRITE if may_be_written(error) else Event.REFUSED, error=error)


def _not_started(run: Run, error: ShoalError) -> Outcome:
    if isinstance(error, DeadlineExceeded):
        message = "the sandbox did not start in time; nothing of it is left. Allow more with deadline="
        return Outcome(Event.UNCLEAR_START, error=DeadlineExceeded(message))
    if isinstance(error, Unavailable):
        # An actor that is being restarted may have started it all the same.
        return _slot_failed(run, Event.SLOT_LOST if is_gone(error) else Event.UNCLEAR_START, error)
    if isinstance(error, FailedPrecondition) and error.state == OCCUPIED:
        return _slot_failed(run, Event.SLOT_OCCUPIED, Unavailable(error.message, actor="gone"))
    return Outcome(Event.FAILED, error=error)


def _slot_failed(run: Run, event: Event, error: ShoalError) -> Outcome:
    """It is tried in another slot, unless it has been tried often enough."""
    assert run.slot is not None
    last = run.slot.idle_since == 0.0 and run.attempts >= ATTEMPTS
    if event is Event.UNCLEAR_START or last:
        return Outcome(Event.UNCLEAR_START, error=error)
    return Outcome(event)
