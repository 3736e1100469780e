"""The verbs that stop and start persistent sandboxes: see `shoal.model.verbs` for what each does and raises."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.actors.controller.admission import Admission
from shoal.actors.controller.endings import SUSPENDED, check_gives_memory, ended_error, stopped, stopped_error
from shoal.actors.controller.history import History
from shoal.actors.controller.pausing import Pausing
from shoal.actors.controller.persistence import machine_missing
from shoal.actors.controller.phase import LAUNCHED, RESTING, SETTLED, Phase
from shoal.actors.controller.quotas import check_use
from shoal.actors.controller.record import SandboxRecord, StopRequest
from shoal.actors.controller.record_writer import RecordWriter, audited
from shoal.actors.controller.restarts import is_due
from shoal.actors.controller.sandboxes import Sandboxes
from shoal.actors.controller.supervisor import SandboxSupervisor
from shoal.model import tasks, verbs
from shoal.model.access import INSIDE, AuditEntry, Caller
from shoal.model.errors import DeadlineExceeded, FailedPrecondition, ShoalError, Unavailable
from shoal.model.grants import Grant
from shoal.model.info import SandboxInfo
from shoal.model.states import Reason
from shoal.model.validate import check_number

log = logging.getLogger("shoal.starting")

_UP = frozenset({Phase.RUNNING, Phase.ADOPTING})
_WAKING = frozenset({Phase.WAKING, Phase.WAKING_PLACED, Phase.RESTARTING, Phase.CONFIRMING})
_GOING = frozenset({Phase.STOPPING, Phase.REMOVING})
_MACHINES = 2
"""Machines on which one start tries: its own, and another if that has no room."""
_AGAIN_S = 120.0
"""Seconds that a start by itself has."""


@dataclass(slots=True)
class Starting:
    """Stops persistent sandboxes and starts them again."""

    sandboxes: Sandboxes
    history: History
    admission: Admission
    supervisor: SandboxSupervisor
    writer: RecordWriter
    pausing: Pausing

    async def stop(self, sandbox_id: str, caller: Caller) -> SandboxInfo:
        """Stops it and returns once nothing of it runs. Idempotent."""
        record = await self._persistent(sandbox_id, caller)
        entry = audited(verbs.stop, caller, target=record.id, environment=record.spec.environment)
        await record.life.reached(LAUNCHED)
        if record.ended:
            raise ended_error(record)
        request = StopRequest(Reason.STOPPED, "stopped on request", caller.token)
        suspended = record.suspended
        await self.supervisor.stop(record, request, [entry])
        if record.ended:
            raise ended_error(record)
        if suspended:
            await self.supervisor.persistence.forget_memory(record)
            stop = stopped(request)
            await self.writer.put(record, audit=[entry], change=lambda: {"suspended": False, "stop": stop})
        return record.info

    async def suspend(self, sandbox_id: str, caller: Caller) -> SandboxInfo:
        """Stops it with its memory kept. Idempotent; where that cannot be, it runs on."""
        record = await self._persistent(sandbox_id, caller)
        check_gives_memory(record)
        await record.life.reached(LAUNCHED)
        await record.life.reached({*_UP, *RESTING, *_GOING, *SETTLED, Phase.SUSPENDING})
        if record.life.phase in RESTING and not record.suspended:
            raise stopped_error(record)
        if record.life.phase not in RESTING:
            record.failure = None
            entry = audited(verbs.suspend, caller, target=record.id, environment=record.spec.environment)
            await self.supervisor.stop(record, StopRequest(Reason.SUSPENDED, SUSPENDED, caller.token), [entry])
        if record.ended:
            raise ended_error(record)
        if record.life.phase not in RESTING and record.failure is not None:
            raise record.failure
        return record.info

    async def resume(self, sandbox_id: str, caller: Caller) -> SandboxInfo:
        """Lets it go on, whether it is paused or suspended. Idempotent."""
        record = await self.history.get(sandbox_id, caller)
        if not record.suspended:
            return await self.pausing.resume(sandbox_id, caller)
        entry = audited(verbs.resume, caller, target=record.id, environment=record.spec.environment)
        await self._bring_up(record, _AGAIN_S, [entry])
        return record.info

    async def start(self, sandbox_id: str, deadline: float, caller: Caller) -> SandboxInfo:
        """Starts it and returns it running. Idempotent."""
        check_number("deadline", deadline, 0, self.admission.limits.create_deadline, "seconds")
        record = await self._persistent(sandbox_id, caller)
        entry = audited(verbs.start, caller, target=record.id, environment=record.spec.environment)
        await self._bring_up(record, deadline, [entry])
        return record.info

    async def wake(self, sandbox_id: str, deadline: float) -> Grant:
        """Access to it, once it runs. However many ask, it is started once."""
        record = await self.history.get(sandbox_id, INSIDE)
        if record.spec.persistent and record.life.phase not in _UP and not record.ended:
            if not record.spec.autostart and record.life.phase in RESTING:
                raise stopped_error(record)
            await self._bring_up(record, deadline, ())
        if record.paused_at is not None and record.spec.autostart:
            await self.pausing.resume(record.id, INSIDE)
        return await self.sandboxes.grant(sandbox_id, INSIDE)

    async def shut_down(self, record: SandboxRecord) -> None:
        """Stops it with the cluster; it may start again with that."""
        if record.life.phase not in RESTING:
            request = StopRequest(Reason.SHUTDOWN, "its cluster was shut down", INSIDE.token)
            await self.supervisor.stop(record, request)

    def restart_due(self, records: Sequence[SandboxRecord], now: float) -> None:
        """Starts those again whose time has come, and whose machine is there."""
        for record in records:
            if record.life.phase is not Phase.STOPPED or not is_due(record, now):
                continue
            if self.supervisor.persistence.must_move(record):
                tasks.shared(self._move_again(record), "move sandbox")
            elif self.supervisor.persistence.may_start(record):
                try:
                    self._wake(record, _AGAIN_S, by_itself=True)
                except ShoalError:  # its quota is used up, say: at the next look
                    continue

    async def _bring_up(self, record: SandboxRecord, deadline_s: float, audit: Sequence[AuditEntry]) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                await record.life.reached(LAUNCHED)
                await record.life.reached({Phase.STOPPED, *_UP, *_WAKING, *_GOING, *SETTLED})
                if record.life.phase is Phase.STOPPED and audit:
                    await self.writer.put(record, audit=audit)
                for _ in range(_MACHINES):
                    if record.life.phase is Phase.STOPPED:  # nobody was quicker
                        await self._wake_where_it_can(record, end)
                    await record.life.reached({*_UP, *RESTING, *_GOING, *SETTLED})
                    if record.life.phase not in RESTING or not self.supervisor.persistence.must_move(record):
                        break
                    await record.life.reached({Phase.STOPPED, *_UP, *_WAKING, *_GOING, *SETTLED})
        except TimeoutError:
            raise DeadlineExceeded(
                f"sandbox {record.id} did not start within {deadline_s:g} s; allow more with deadline=",
                field="deadline",
            ) from None
        if record.ended:
            raise ended_error(record)
        if record.life.phase in RESTING:
            raise record.failure or stopped_error(record)

    async def _wake_where_it_can(self, record: SandboxRecord, end: float) -> None:
        """On its machine, or moved from there first. `end`: by the loop's clock."""
        persistence = self.supervisor.persistence
        if persistence.must_move(record):
            await self.supervisor.move(record)
        elif record.home is not None and persistence.node_of(record) is None:
            raise machine_missing(record)
        if record.life.phase is Phase.STOPPED:
            self._wake(record, max(0.1, end - asyncio.get_running_loop().time()))

    async def _move_again(self, record: SandboxRecord) -> None:
        """Moves one that is to start by itself; where that fails, it is tried at the next look."""
        try:
            await self.supervisor.move(record)
        except ShoalError as error:
            log.warning("%s could not be moved from its machine: %s", record.id, error)

    def _wake(self, record: SandboxRecord, deadline_s: float, *, by_itself: bool = False) -> None:
        if self.admission.closed:
            raise Unavailable("the cluster is being shut down; the sandbox is stopped")
        environment = record.spec.environment
        check_use(self.admission.accounts.quota(environment), self.admission.registry.usage(environment), record.spec)
        self.supervisor.wake(record, deadline_s, by_itself=by_itself)

    async def _persistent(self, sandbox_id: str, caller: Caller) -> SandboxRecord:
        record = await self.history.get(sandbox_id, caller)
        if record.ended:
            raise ended_error(record)
        if not record.spec.persistent:
            raise FailedPrecondition(
                f"sandbox {sandbox_id} is not persistent: it can only be terminated; "
                "create one with persistent=True to stop and start it",
                state=record.state.value,
            )
        await self.supervisor.accepted(record)
        return record
