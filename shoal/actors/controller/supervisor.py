"""Carries out what a sandbox's phase asks for, one activity after another, from its acceptance to its end.
`phase_table.py` decides.

The order is: write the intent, act, write what came of it. Only the end of a sandbox that keeps nothing goes on while
the request for it is written: its slot tells of it, too. So a controller that is killed anywhere finds on
record what it was about to do:

    pending                 nothing of it exists; it waits for a slot
    starting, with a slot   the slot may hold it, may have started its container, or may know nothing of it
    running                 its container lives, or has just ended; its slot, if that lives, knows how
    stopped                 a persistent one: nothing of it runs
    starting, and it ran    the slot may hold it, may have started its container again, or may know nothing of it
    stopping set            somebody asked a persistent one to stop, or to be suspended: it is
    ended_by set, no end    somebody asked for its end: it is ended

and of each it does what is left to do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.actors.controller.adoption import Adoption
from shoal.actors.controller.endings import (
    ON_REQUEST,
    ended_error,
    evicted,
    failed_start,
    follows_from_request,
    given_up,
    machine_lost,
    node_lost,
    too_late,
)
from shoal.actors.controller.launcher import Launcher
from shoal.actors.controller.metrics import Metrics
from shoal.actors.controller.moving import Moving
from shoal.actors.controller.persistence import Persistence, kept
from shoal.actors.controller.phase import (
    ACCEPTED,
    ACTIVITY,
    LAUNCHED,
    LOSABLE,
    ON_RECORD_AS_STOPPED,
    OVER,
    RESTING,
    SETTLED,
    UP_OR_LAUNCHED,
    Action,
    Event,
    Phase,
)
from shoal.actors.controller.ready_slots import ReadySlots
from shoal.actors.controller.record import Home, SandboxRecord, StopRequest
from shoal.actors.controller.record_writer import RecordWriter
from shoal.actors.controller.registry import Registry
from shoal.actors.controller.restarts import count, due_at
from shoal.actors.controller.run import Outcome, Run, asked_for
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.slot_ends import end_from_slot, watched_end
from shoal.actors.controller.slots import SlotPool
from shoal.actors.handles import call
from shoal.actors.messages import End
from shoal.model import call_context, tasks
from shoal.model.access import AuditEntry, Caller
from shoal.model.clock import steady_time
from shoal.model.errors import DeadlineExceeded, ShoalError
from shoal.model.spec import SandboxSpec
from shoal.model.states import Reason

log = logging.getLogger("shoal.supervisor")

_AFTER_DEFECT_S = 1.0
_WIPE_S = 30.0
_JOIN_S = 10.0


@dataclass(slots=True)
class SandboxSupervisor:
    """The running half of the controller: one task per living sandbox. `call`: how actors are called."""

    registry: Registry
    writer: RecordWriter
    pool: SlotPool
    ready: ReadySlots
    adoption: Adoption
    metrics: Metrics
    call: Callable[..., Awaitable[Any]] = call
    persistence: Persistence = field(init=False)
    _runs: dict[str, Run] = field(default_factory=dict)
    _at_once: dict[Action, Callable[[Run], None]] = field(init=False)
    _activities: dict[Action, Callable[[Run], Awaitable[Outcome]]] = field(init=False)
    launcher: Launcher = field(init=False)
    moving: Moving = field(init=False)
    """Set by who puts the parts together: it needs images, which need the supervisor's parts."""

    def __post_init__(self) -> None:
        launcher = self.launcher = Launcher(self.writer, self.pool, self.call)
        self.persistence = Persistence(
            self.pool, self.adoption.maker, self.adoption.nodes, self.call, launcher, self.adoption.remove
        )
        self._at_once = {
            Action.FREE_SLOT: self._free_slot,
            Action.DISCARD_SLOT: self._forget_slot,
            Action.FORGET_SLOT: self._forget_slot,
            Action.REMOVE_LATER: self._remove_later,
            Action.COUNT_ACCEPTANCE: self._count_acceptance,
            Action.NOTE_START: self._note_start,
            Action.RETRACT: self._retract,
            Action.NOTE_END: self._note_end,
            Action.NOTE_STOP: self._note_stop,
            Action.NOTE_WAKE: self._note_wake,
            Action.NOTE_MOVE: self._note_move,
        }
        self._activities = {
            Action.WRITE_ACCEPTANCE: launcher.write_acceptance,
            Action.FIND_SLOT: launcher.find_slot,
            Action.WRITE_SLOT: launcher.write_slot,
            Action.START: launcher.start,
            Action.REMOVE: self._remove,
            Action.WRITE_RUNNING: self._write_state,
            Action.WATCH: self._watch,
            Action.ADOPT: self._adopt,
            Action.STOP: self._stop,
            Action.WRITE_END: self._write_state,
            Action.CLEAR: self._clear,
            Action.HALT: self._halt,
            Action.HALT_THERE: self.persistence.halt_there,
            Action.SUSPEND: self.persistence.suspend,
            Action.WRITE_STOP: self._write_state,
            Action.FIND_OWN_SLOT: self.persistence.find_own_slot,
            Action.RESTART: self.persistence.restart,
            Action.MOVE: self._move,
            Action.WRITE_MOVE: self._write_move,
        }

    def check_room(self, spec: SandboxSpec) -> None:
        """Raises `NoCapacity` if such a sandbox would have to wait for room. `spec`: as for `SlotStock.request`."""
        if not self.ready.serves(spec):
            self.pool.check_room(self.pool.stock.request(spec))

    # -- what is asked of it ------------------------------------------------------------------------

    def begin(self, record: SandboxRecord, audit: Sequence[AuditEntry] = ()) -> None:
        """Sets out to bring an accepted sandbox up by its deadline, which puts it on record first. If that fails, it
        has ended."""
        slot = self._slot_at_once(record.launch_spec)
        run = self._runs[record.id] = Run(record, audit=audit)
        record.life.phase = Phase.ACCEPTING
        if slot is not None:
            record.started = slot.give_prepared(record.launch_spec)
            record.life.phase = Phase.ACCEPTING_PLACED if record.started is None else Phase.ACCEPTING_READY
            self._hold(run, slot)
        self._carry_on(run, ACTIVITY[record.life.phase])

    def resume(self, record: SandboxRecord, slot: Slot | None) -> None:
        """Goes on with a living sandbox that an earlier controller left. `slot`: the one on record with it, if that
        lives and holds it."""
        if record.life.phase is Phase.STOPPED and record.ended_by is None:
            return
        run = self._runs[record.id] = Run(record, told=record.state)
        if slot is not None:
            self._hold(run, slot)
            record.deadline = max(record.deadline, steady_time() + _JOIN_S)  # it may run, as its creator was told
        if slot is None and record.life.phase not in (Phase.QUEUED, Phase.STOPPED):
            self._take(run, Outcome(Event.SLOT_LOST))
        if record.started is not None or record.has_disk:
            if record.ended_by is not None:
                self._take(run, Outcome(Event.END_REQUESTED, end=given_up(ON_REQUEST)))
            elif record.stopping is not None:
                self._take(run, asked_for(record.stopping))
        elif record.ended_by is not None:
            self._take(run, Outcome(Event.GIVEN_UP, end=given_up(ON_REQUEST)))
        elif record.deadline <= steady_time():
            self._take(run, Outcome(Event.GIVEN_UP, end=too_late()))
        self._carry_on(run, ACTIVITY[record.life.phase])

    async def accepted(self, record: SandboxRecord) -> None:
        """Waits until it is on record; raises what kept it from that."""
        await record.life.reached(ACCEPTED)
        if record.refusal is not None:
            raise record.refusal

    async def launched(self, record: SandboxRecord, timeout_s: float) -> None:
        """Waits until it has been brought up, or raises what that failed with; `DeadlineExceeded` where that takes
        longer than this caller has, though not the create itself."""
        launched = LAUNCHED if record.spec.persistent else UP_OR_LAUNCHED
        if record.life.phase in launched:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await record.life.reached(launched)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{record.id} is still being made for an earlier call with the same key; "
                "ask again, with a longer deadline",
                field="deadline",
            ) from None
        if record.failure is not None and not record.has_disk:
            raise record.failure
        if record.ended and record.started is None:  # its end was asked for meanwhile
            raise ended_error(record)

    async def evict(self, record: SandboxRecord, message: str, by: Caller) -> None:
        """As `terminate`, for a sandbox that must make way: its end has the reason `evicted`. A persistent one that has
        run is stopped."""
        if record.has_disk:
            await self.stop(record, StopRequest(Reason.EVICTED, message, by.token))
            return
        await self._request_end(record, evicted(message), by)

    async def terminate(self, record: SandboxRecord, message: str, by: Caller) -> None:
        """Ends a sandbox and returns once nothing of it runs any more, and the next controller would say the same.
        Where the store is away, its end is on record once it is back. Raises what kept the sandbox off the record (then
        there is nothing of it), or the request for the end of a persistent one (then it lives on)."""
        await self._request_end(record, given_up(message), by)

    async def _request_end(self, record: SandboxRecord, end: End, by: Caller) -> None:
        await self.accepted(record)  # or the request might come to be on record alone
        if not record.ended:
            recorded = tasks.shared(self.writer.request_end(record, by), "record request")
            if record.spec.persistent:  # its files go with it
                await asyncio.shield(recorded)
            run = self._run_of(record)
            if run is not None:
                self._interrupt(run, Outcome(Event.END_REQUESTED, end=end))
            await record.life.reached(OVER)
            await asyncio.shield(recorded)
            if follows_from_request(record):
                return  # it need not wait for the disk once more
        await record.life.reached(SETTLED)

    async def stop(self, record: SandboxRecord, request: StopRequest, audit: Sequence[AuditEntry] = ()) -> None:
        """Stops or suspends a persistent sandbox that has been brought up, and returns once it has stopped, or ended,
        or runs on as its memory could not be saved. It does not start again by itself then, unless for the request's
        reason. Raises what kept the request off the record."""
        if record.life.phase in RESTING and due_at(record) is not None:
            await record.life.reached({Phase.STOPPED, *SETTLED})  # or else it would start again after that
        if record.life.phase not in RESTING or due_at(record) is not None:
            # The intent: a controller that is restarted now will stop it.
            await self.writer.put(record, audit=audit, change=lambda: {"stopping": request})
            run = self._run_of(record)
            if run is not None and not record.ended:
                self._interrupt(run, asked_for(request))
        await record.life.reached({*ON_RECORD_AS_STOPPED, *SETTLED, Phase.CONFIRMING, Phase.ADOPTING})

    async def move(self, record: SandboxRecord) -> None:
        """Has the files of a stopped sandbox stored and removed from its machine, so that it starts on another one.
        Returns once that is done, or it does not rest any more; raises what kept it from that."""
        run = self._run_of(record) if record.life.phase is Phase.STOPPED and record.home is not None else None
        if run is not None:
            record.failure = None
            self._interrupt(run, Outcome(Event.MOVE_REQUESTED))
        await record.life.reached(set(Phase) - {Phase.MOVING, Phase.MOVED})
        if record.life.phase is Phase.STOPPED and record.home is not None and record.failure is not None:
            raise record.failure

    def wake(self, record: SandboxRecord, deadline_s: float, *, by_itself: bool = False) -> None:
        """Sets out to bring a stopped sandbox up again within `deadline_s`. If that fails, it is stopped."""
        record.deadline = steady_time() + deadline_s
        record.restarts = record.restarts + 1 if by_itself else 0
        record.failure = None
        run = self._run_of(record)
        assert run is not None
        self._interrupt(run, Outcome(Event.START_REQUESTED))

    async def lose_node(self, node_id: str) -> None:
        """A machine is gone, and its sandboxes with it, all at once; persistent ones have stopped."""
        lost = [run for run in self._runs.values() if not run.record.ended and run.is_on(node_id)]
        for run in lost:
            if run.record.spec.persistent and run.record.life.phase in LOSABLE:
                self._interrupt(run, Outcome(Event.MACHINE_LOST, end=machine_lost(run.record)))
            elif run.record.started is not None and run.record.life.phase in ACCEPTED:
                self._interrupt(run, Outcome(Event.NODE_LOST, end=node_lost()))
        told = (run.record for run in lost if run.record.ended or run.record.life.phase in RESTING)
        await asyncio.gather(*(record.life.reached({*ON_RECORD_AS_STOPPED, *SETTLED}) for record in told))

    def on_node(self, node_id: str) -> list[SandboxRecord]:
        """The sandboxes that live on a node, or are about to."""
        return [
            run.record
            for run in self._runs.values()
            if (run.slot is not None and run.slot.node_id == node_id)
            or (run.record.started is not None and run.record.started.node_id == node_id and not run.record.ended)
        ]

    def resting_on(self, node_id: str) -> list[SandboxRecord]:
        """The stopped sandboxes that have their disks on a node, those too whose old container is being removed."""
        return [record for record in self.registry.resting() if node_id in self._disk_nodes(record)]

    def _disk_nodes(self, record: SandboxRecord) -> tuple[str | None, ...]:
        run = self._runs.get(record.id)
        left = run.node_id if run is not None and record.life.phase is Phase.MOVED else None
        return self.persistence.node_of(record), left

    def slots(self) -> list[Slot]:
        """The slots that hold a sandbox, or are about to."""
        return [run.slot for run in self._runs.values() if run.slot is not None]

    def _run_of(self, record: SandboxRecord) -> Run | None:
        """Where it is in the supervisor's hands; one that is stopped comes into them. None: it has ended."""
        run = self._runs.get(record.id)
        if run is None and record.life.phase is Phase.STOPPED:
            run = self._runs[record.id] = Run(record, told=record.state)
        return run

    # -- how it goes on -----------------------------------------------------------------------------

    def _interrupt(self, run: Run, outcome: Outcome) -> None:
        """Something happened that the activity under way did not tell: it goes on, or another takes its place."""
        activity = self._take(run, outcome)
        if activity is not None:
            self._carry_on(run, activity)

    def _carry_on(self, run: Run, activity: Action) -> None:
        """The one place where a task of a sandbox's is started."""
        if (before := run.task) is not None:
            before.cancel()
        run.task = tasks.shared(self._live(run, activity, before), "live")

    async def _live(self, run: Run, activity: Action | None, before: asyncio.Task[None] | None) -> None:
        """Carries out one activity after another, as soon as the task that was interrupted has let go."""
        call_context.about(run.record.id)
        if before is not None:
            await asyncio.wait([before])
        while activity is not None:
            try:
                activity = self._take(run, await self._activities[activity](run))
            except Exception:  # a defect, or an error that nobody foresaw: all activities may be tried again
                log.exception("%s of %s", activity, run.record.id)
                await asyncio.sleep(_AFTER_DEFECT_S)
        self._runs.pop(run.record.id, None)

    def _take(self, run: Run, outcome: Outcome) -> Action | None:
        """Makes the step, does what is to be done at once, and returns the activity that is next, if another is."""
        record = run.record
        if outcome.error is not None:
            record.failure = outcome.error
            if record.life.phase not in ACCEPTED:
                record.refusal = outcome.error
            run.end = failed_start(outcome.error)
        if outcome.slot is not None:
            self._hold(run, outcome.slot)
        if outcome.started is not None:
            record.started = outcome.started
        if outcome.disk is not None:
            run.disk = outcome.disk
        if outcome.end is not None and not record.ended:
            run.end = outcome.end
        for action in record.life.apply(outcome.event, time.time()):
            if action in self._activities:
                return action
            self._at_once[action](run)
        return None

    # -- what is done at once -----------------------------------------------------------------------

    def _slot_at_once(self, spec: SandboxSpec) -> Slot | None:
        """One that is ready for it, or idle, or about to be ready."""
        request = self.pool.stock.request(spec)
        return (
            self.ready.take(spec, request)
            or self.pool.take_idle(request, spec.environment)
            or self.ready.take_unfinished(spec, request)
        )

    def _hold(self, run: Run, slot: Slot) -> None:
        self.pool.stock.hold(slot, run.record.spec.environment)
        run.slot = slot
        run.record.slot_id = slot.id

    def _free_slot(self, run: Run) -> None:
        if run.slot is not None:
            self.pool.put(run.slot)
            run.slot = None

    def _forget_slot(self, run: Run) -> None:
        if run.slot is not None:
            self.pool.stock.discard(run.slot)
            run.node_id = run.slot.node_id
            run.slot = None

    def _remove_later(self, run: Run) -> None:
        run.remains = True

    def _count_acceptance(self, run: Run) -> None:
        self.metrics.accepted(run.record)

    def _note_start(self, run: Run) -> None:
        record = run.record
        if not record.has_disk:
            self.metrics.started(record)
        if record.spec.persistent and record.started is not None:
            record.home = self._home(record.started.node_id, record.started.machine)
            record.stop = record.stopping = None
            record.suspended = False

    def _retract(self, run: Run) -> None:
        self.registry.retract(run.record)

    def _note_end(self, run: Run) -> None:
        assert run.end is not None
        run.record.finish(run.end)
        self.registry.settle(run.record)
        self.metrics.ended(run.record)

    def _note_stop(self, run: Run) -> None:
        record, stop = run.record, run.end
        assert stop is not None
        ran_s = None if record.started is None else stop.ended_at - record.started.started_at
        record.restarts = count(record.restarts, ran_s)
        if record.home is None and run.slot is not None and run.slot.node_id is not None:
            record.home = self._home(run.slot.node_id)  # its slot stopped it while it started on a new machine
        waits = record.suspended and record.started is None and stop.reason is not Reason.STOPPED
        record.suspended = waits or stop.reason is Reason.SUSPENDED
        record.rest(replace(stop, kept=True))
        self.registry.rest(record)

    def _note_wake(self, run: Run) -> None:
        self.registry.wake(run.record)

    def _note_move(self, run: Run) -> None:
        assert run.disk is not None
        run.node_id = self.persistence.node_of(run.record)
        run.record.disk, run.record.home = run.disk, None
        if run.record.suspended and run.record.stop is not None:
            run.record.suspended = False
            run.record.stop = replace(run.record.stop, message="suspended, and moved since: its memory did not move")

    def _home(self, node_id: str, machine: str | None = None) -> Home | None:
        found = machine or self.adoption.nodes.machine_of(node_id)
        return None if found is None else Home(found, self.adoption.nodes.hostname(node_id))

    # -- activities ---------------------------------------------------------------------------------

    async def _move(self, run: Run) -> Outcome:
        return await self.moving.move(run)

    async def _write_move(self, run: Run) -> Outcome:
        return await self.moving.write_move(run)

    async def _write_state(self, run: Run) -> Outcome:
        await self.writer.keep(run.record, *run.news())
        return Outcome(Event.WRITTEN)

    async def _watch(self, run: Run) -> Outcome:
        if run.slot is not None:
            self.pool.settled(run.slot)
        return await watched_end(self.call, run)

    async def _stop(self, run: Run) -> Outcome:
        assert run.end is not None
        assert run.slot is not None
        wanted = run.end
        self.pool.stock.leaving(run.slot)
        if await self.adoption.end_directly(run.record):
            return Outcome(Event.ENDED, end=replace(wanted, ended_at=time.time()))
        outcome = await end_from_slot(self.call, run, "terminate", wanted.message)
        if outcome.event is Event.HALTED:
            return Outcome(Event.HALTED)  # why it had stopped is not its end
        if outcome.end is not None and outcome.end.reason is Reason.TERMINATED:
            # The slot was only told to end it, or that its container is gone; the controller knows what for.
            code = outcome.end.returncode if wanted.reason is Reason.TERMINATED else None
            return replace(outcome, end=End(wanted.reason, code, wanted.message, outcome.end.ended_at))
        return outcome

    async def _halt(self, run: Run) -> Outcome:
        assert run.end is not None
        return await end_from_slot(self.call, run, "stop", run.end.reason, run.end.message)

    async def _adopt(self, run: Run) -> Outcome:
        outcome = await self.adoption.adopt(run.record)
        return kept(outcome) if run.record.spec.persistent else outcome

    async def _remove(self, run: Run) -> Outcome:
        record, started = run.record, run.record.started
        if record.home is None:
            await self.adoption.remove(record.id, run.node_id if started is None else started.node_id)
        elif (node_id := self.persistence.node_of(record)) is not None:
            await self.adoption.remove(record.id, node_id)
        return Outcome(Event.REMOVED)  # on a machine that is away: once that is back

    async def _clear(self, run: Run) -> Outcome:
        if run.remains:
            await self.adoption.remove(run.record.id, run.node_id)
        if run.slot is not None:
            # Until its end is on record nobody but its slot could tell the next controller.
            await self.writer.caught_up(run.record)
            try:
                await self.call(run.slot.handle, "wipe", run.record.id, timeout_s=_WIPE_S)
            except ShoalError:
                self._forget_slot(run)
            else:
                self._free_slot(run)
        return Outcome(Event.CLEARED)
