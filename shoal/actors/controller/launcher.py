"""Brings a sandbox up: each step of a start as a plain coroutine that returns what it came to. `supervisor.py` says
which is next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from shoal.actors.controller.phase import Event
from shoal.actors.controller.record_writer import RecordWriter, created, may_be_written
from shoal.actors.controller.run import Outcome, Run
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.slots import SlotPool
from shoal.actors.handles import is_gone
from shoal.actors.messages import OCCUPIED, SandboxStarted
from shoal.model import tasks, tracing
from shoal.model.clock import steady_time
from shoal.model.errors import DeadlineExceeded, FailedPrecondition, SandboxNotFound, ShoalError, Unavailable
from shoal.model.secrets import SecretValues
from shoal.model.spec import SandboxSpec

ATTEMPTS = 3
"""New slots that may die starting one sandbox. Idle ones do not count: any number of them may have died unnoticed."""


_UNDO_S = 30.0

SLOT_STEPS = frozenset({"take", "agent", "command"})
"""Of a start's steps those that the slot takes itself, after the node's. It makes no spans of its own."""


async def no_secrets(spec: SandboxSpec) -> SecretValues | None:
    """For a controller without secrets."""
    return None


@dataclass(slots=True)
class Launcher:
    """`call`: how actors are called; `secret_values`: what the processes of a sandbox get of its secrets."""

    writer: RecordWriter
    pool: SlotPool
    call: Callable[..., Awaitable[Any]]
    secret_values: Callable[[SandboxSpec], Awaitable[SecretValues | None]] = no_secrets
    starting: int = 0
    """Starts under way."""

    async def write_acceptance(self, run: Run) -> Outcome:
        """Puts the sandbox on record for the first time, with its slot if one was idle.

        A slot that is ready takes it meanwhile, unless it has a command: nobody sees anything of that before it is on
        record, and if it never is, the slot is wiped, or ended by the next controller."""
        happened = [created(run.record)] if run.slot is None else [created(run.record), *run.news()]
        if run.slot is not None and run.slot.prepared is not None:
            run.slot.prepared = run.slot.container = run.slot.untold = None
            if not run.record.spec.command:
                run.early = tasks.shared(self._start(run, run.slot), "start in ready slot")
        try:
            await self.writer.put(run.record, *happened, audit=run.audit)
        except ShoalError as error:
            await self._undo_early(run)
            return _not_written(error)
        return Outcome(Event.WRITTEN)

    async def find_slot(self, run: Run) -> Outcome:
        """Waits for a slot until the sandbox's deadline."""
        left_s = max(0.0, run.record.deadline - steady_time())
        request = self.pool.stock.request(run.record.launch_spec)
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
        early, run.early = run.early, None
        try:
            started = await (self._start(run, run.slot) if early is None else asyncio.shield(early))
        except ShoalError as error:
            self.pool.stock.health.failed(run.slot.node_id, run.record.id, run.record.spec.image, error)
            return _not_started(run, error)
        self.pool.stock.health.started(run.slot.node_id, run.record.spec.image)
        return Outcome(Event.STARTED, started=started)

    async def _start(self, run: Run, slot: Slot) -> SandboxStarted:
        left_s = max(0.1, run.record.deadline - steady_time())
        self.starting += 1
        try:
            # At the last moment: they are in the clear from here to the agent, and kept nowhere.
            values = await self.secret_values(run.record.spec)
            given = (run.record.launch_spec,) if values is None else (run.record.launch_spec, values)
            with tracing.span("start", {tracing.SANDBOX_ID: run.record.id}, root=False):
                started: SandboxStarted = await self.call(slot.handle, "start", run.record.id, *given, timeout_s=left_s)
                tracing.steps([step for step in started.took if step[0] in SLOT_STEPS], time.time())
        finally:
            self.starting -= 1
        return started

    async def _undo_early(self, run: Run) -> None:
        """The store did not take it: its slot lets go of it, or ends."""
        early, run.early = run.early, None
        if early is None or run.slot is None:
            return
        slot, sandbox_id = run.slot, run.record.id
        try:
            with suppress(SandboxNotFound):  # its start had failed, and left nothing
                await asyncio.wait([early])
                await self.call(slot.handle, "terminate", sandbox_id, "it could not be recorded", timeout_s=_UNDO_S)
                await self.call(slot.handle, "wipe", sandbox_id, timeout_s=_UNDO_S)
        except ShoalError:
            run.slot = None
            self.pool.stock.discard(slot)  # its node sweeps the container


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
