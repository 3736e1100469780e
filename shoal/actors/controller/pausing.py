"""Pauses sandboxes: their processes are frozen where they are, and nobody reaches them. That one shall be paused is on
record first: what a controller that is killed had begun, the next one does again.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from shoal.actors.controller.endings import ended_error
from shoal.actors.controller.history import History
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.phase import Phase
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.record_writer import RecordWriter, audited
from shoal.actors.controller.supervisor import SandboxSupervisor
from shoal.model import tasks, verbs
from shoal.model.access import Caller
from shoal.model.errors import FailedPrecondition, NotFound, ShoalError
from shoal.model.info import SandboxInfo
from shoal.model.states import State

log = logging.getLogger("shoal.pausing")

_UP = frozenset({Phase.CONFIRMING, Phase.RUNNING, Phase.ADOPTING})
_PAUSE_S = 30.0


@dataclass(slots=True)
class Pausing:
    """`call`: how actors are called; `clock`: unix seconds."""

    history: History
    supervisor: SandboxSupervisor
    nodes: Nodes
    writer: RecordWriter
    call: Callable[..., Awaitable[Any]]
    clock: Callable[[], float] = time.time
    _turns: weakref.WeakValueDictionary[str, asyncio.Lock] = field(default_factory=weakref.WeakValueDictionary)

    async def pause(self, sandbox_id: str, caller: Caller) -> SandboxInfo:
        """Freezes it. Idempotent."""
        return await asyncio.shield(tasks.shared(self._pause(sandbox_id, caller), "pause"))

    async def resume(self, sandbox_id: str, caller: Caller) -> SandboxInfo:
        """Lets it go on. Idempotent."""
        return await asyncio.shield(tasks.shared(self._resume(sandbox_id, caller), "resume"))

    def restore(self, records: Iterable[SandboxRecord]) -> None:
        """Freezes what an earlier controller was about to."""
        for record in records:
            if record.paused_at is not None:
                tasks.shared(self._freeze_again(record), "pause")

    async def _pause(self, sandbox_id: str, caller: Caller) -> SandboxInfo:
        record = await self._up(sandbox_id, caller)
        async with self._turn(record):
            if _check_up(record).paused_at is None:
                now = self.clock()
                entry = audited(verbs.pause, caller, target=record.id, environment=record.spec.environment)
                told = (State.PAUSED.value, {"token": caller.token})
                await self.writer.put(record, told, audit=[entry], change=lambda: {"paused_at": now})
                try:
                    await self._ask(record, "pause_sandbox")
                except ShoalError as error:
                    await self._undo(record)
                    raise _explained(record, error) from None
        return _check_up(record).info

    async def _resume(self, sandbox_id: str, caller: Caller) -> SandboxInfo:
        record = await self._up(sandbox_id, caller)
        async with self._turn(record):
            if _check_up(record).paused_at is not None:
                try:
                    await self._ask(record, "resume_sandbox")
                except ShoalError as error:
                    raise _explained(record, error) from None
                entry = audited(verbs.resume, caller, target=record.id, environment=record.spec.environment)
                told = (State.RUNNING.value, {"token": caller.token})
                await self.writer.put(record, told, audit=[entry], change=lambda: {"paused_at": None})
        return _check_up(record).info

    async def _undo(self, record: SandboxRecord) -> None:
        """It could not be paused: it runs, and nobody is kept from it."""
        try:
            await self._ask(record, "resume_sandbox")
            await self.writer.put(record, (State.RUNNING.value, {}), change=lambda: {"paused_at": None})
        except ShoalError as error:  # it ends, or its node or the store is away: `resume` does the same
            log.warning("%s is neither paused nor running: %s", record.id, error)

    async def _freeze_again(self, record: SandboxRecord) -> None:
        async with self._turn(record):
            if record.paused_at is not None and record.life.phase in _UP:
                try:
                    await self._ask(record, "pause_sandbox")
                except ShoalError as error:
                    log.warning("%s is not paused again: %s", record.id, error)

    async def _ask(self, record: SandboxRecord, method: str) -> None:
        started = _check_up(record).started
        assert started is not None
        await self.call(self.nodes.handle(started.node_id), method, record.id, timeout_s=_PAUSE_S)

    async def _up(self, sandbox_id: str, caller: Caller) -> SandboxRecord:
        record = await self.history.get(sandbox_id, caller)
        if not record.ended:
            await self.supervisor.accepted(record)
        return _check_up(record)

    def _turn(self, record: SandboxRecord) -> asyncio.Lock:
        """One is paused and resumed by one caller at a time."""
        turn = self._turns.get(record.id)
        if turn is None:
            turn = self._turns[record.id] = asyncio.Lock()
        return turn


def _check_up(record: SandboxRecord) -> SandboxRecord:
    """The record; raises for one that neither runs nor is paused."""
    if record.ended:
        raise ended_error(record)
    if record.life.phase not in _UP:
        raise FailedPrecondition(
            f"sandbox {record.id} is {record.state.value}: only what runs can be paused", state=record.state.value
        )
    return record


def _explained(record: SandboxRecord, error: ShoalError) -> ShoalError:
    """A container that is gone is a sandbox that ends."""
    if not isinstance(error, NotFound):
        return error
    if record.ended:
        return ended_error(record)
    return FailedPrecondition(f"sandbox {record.id} has no container now: it ends", state=record.state.value)
