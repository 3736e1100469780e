"""Stops persistent sandboxes that no slot holds, and brings stopped ones up on the machine that has their disk: each
step as a plain coroutine that returns what it came to. `supervisor.py` says which is next.

A disk stays on its machine, and one that is lost keeps its sandboxes stopped until it is back. What was moved before
(`moving.py`) has none: it starts wherever there is room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from shoal.actors.controller.endings import machine_lost, not_resumed, stop_unknown
from shoal.actors.controller.launcher import Launcher, no_secrets
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.phase import Event
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.run import Outcome, Run
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.slot_maker import SlotMaker
from shoal.actors.controller.slots import SlotPool
from shoal.actors.handles import is_gone, is_restarting
from shoal.actors.messages import OCCUPIED, SandboxStarted
from shoal.model import tasks
from shoal.model.clock import steady_time
from shoal.model.errors import DeadlineExceeded, FailedPrecondition, NoCapacity, ShoalError, Unavailable
from shoal.model.secrets import SecretValues
from shoal.model.spec import SandboxSpec
from shoal.model.states import State

_STOP_S = 60.0
_SUSPEND_S = 150.0
_RETRY_S = 0.5
_PATIENCE_S = 2.0
"""Seconds after which idle slots on the machine give way."""
_CROWDED_S = 5.0
"""Seconds after which its start is given up where another machine has room: it can be moved there."""


@dataclass(slots=True)
class Persistence:
    """`call`: how actors are called; `remove`: removes a sandbox's container from a node; `secret_values`: what the
    processes of a sandbox get of its secrets; `movable`: whether what has its disk on that node can be moved."""

    pool: SlotPool
    maker: SlotMaker
    nodes: Nodes
    call: Callable[..., Awaitable[Any]]
    launcher: Launcher
    remove: Callable[[str, str | None], Awaitable[None]]
    secret_values: Callable[[SandboxSpec], Awaitable[SecretValues | None]] = no_secrets
    movable: Callable[[str], bool] = lambda node_id: False

    async def halt_there(self, run: Run) -> Outcome:
        """Has its node stop its container, for as long as there is that node."""
        record = run.record
        if record.home is None:  # the start that failed was the first on a new machine: its files are stored
            await self.remove(record.id, run.node_id)
            return Outcome(Event.HALTED, end=run.end or stop_unknown())
        method = "undo_restart" if record.suspended else "stop_sandbox"
        while (node_id := self.node_of(record)) is not None:
            try:
                kept = await self.call(self.nodes.handle(node_id), method, record.id, timeout_s=_STOP_S)
            except ShoalError:
                await asyncio.sleep(_RETRY_S)
            else:
                if record.suspended:
                    record.suspended = kept
                    return Outcome(Event.HALTED, end=not_resumed(lost=not kept))
                return Outcome(Event.HALTED, end=run.end or stop_unknown())
        return Outcome(Event.HALTED, end=run.end or machine_lost(record))

    async def suspend(self, run: Run) -> Outcome:
        """Has its node save its memory and stop it."""
        record = run.record
        while True:
            node_id = self.node_of(record)
            try:
                if node_id is None:
                    raise machine_missing(record)
                await self.call(self.nodes.handle(node_id), "suspend_sandbox", record.id, timeout_s=_SUSPEND_S)
            except ShoalError as error:
                if isinstance(error, Unavailable) and is_restarting(error):
                    await asyncio.sleep(_RETRY_S)
                    continue
                record.stopping = None
                return Outcome(Event.SLOT_LOST if run.slot is None else Event.NOT_SUSPENDED, error=error)
            return Outcome(Event.SUSPENDED)

    async def forget_memory(self, record: SandboxRecord) -> None:
        """Has its node let go of the memory of one that was suspended; raises what kept it from that."""
        node_id = self.node_of(record)
        if node_id is None:
            raise machine_missing(record)
        await self.call(self.nodes.handle(node_id), "forget_memory", record.id, timeout_s=_STOP_S)

    async def find_own_slot(self, run: Run) -> Outcome:
        """A new slot on its machine, until its deadline; one that was moved takes any."""
        if run.record.home is None:
            return await self.launcher.find_slot(run)
        node_id = self.node_of(run.record)
        if node_id is None:
            return Outcome(Event.FAILED, error=machine_missing(run.record))
        if (why := self.nodes.cordoned().get(node_id)) is not None:
            return Outcome(Event.FAILED, error=machine_cordoned(run.record, why))
        left_s = max(0.0, run.record.deadline - steady_time())
        try:
            async with asyncio.timeout(left_s):
                slot = await self._slot_on(node_id, run.record)
        except TimeoutError:
            message = f"its machine {_name(run.record)} had no room for it in time; end others there, or wait longer"
            return Outcome(Event.FAILED, error=DeadlineExceeded(message, field="deadline"))
        except ShoalError as error:
            return Outcome(Event.FAILED, error=error)
        return Outcome(Event.SLOT_FOUND, slot=slot)

    async def restart(self, run: Run) -> Outcome:
        """Has the slot start it again. The slot joins a start that it has made already."""
        assert run.slot is not None
        record = run.record
        left_s = max(0.1, record.deadline - steady_time())
        try:
            values = await self.secret_values(record.spec)
            given = (record.launch_spec,) if values is None else (record.launch_spec, values)
            method = "restart" if record.home is not None else "start"
            started: SandboxStarted = await self.call(run.slot.handle, method, record.id, *given, timeout_s=left_s)
        except DeadlineExceeded:
            message = "the sandbox did not start in time; it is stopped. Allow more with deadline="
            return Outcome(Event.UNCLEAR_START, error=DeadlineExceeded(message, field="deadline"))
        except Unavailable as error:
            return Outcome(Event.SLOT_LOST if is_gone(error) else Event.UNCLEAR_START, error=error)
        except FailedPrecondition as error:
            if error.state == OCCUPIED:
                return Outcome(Event.SLOT_OCCUPIED)
            if record.suspended:
                error = FailedPrecondition(
                    f"sandbox {record.id}: {error.message}. Its memory is kept; `sandbox.stop()` lets go of it; then "
                    "it starts from its files",
                    state=error.state,
                )
            return Outcome(Event.FAILED, error=error)
        except ShoalError as error:
            return Outcome(Event.FAILED, error=error)
        return Outcome(Event.STARTED, started=started)

    def node_of(self, record: SandboxRecord) -> str | None:
        """The node that its machine is now; None while that is not part of the cluster."""
        return None if record.home is None else self.nodes.of_machine(record.home.machine)

    def may_start(self, record: SandboxRecord) -> bool:
        """Whether its machine is there, and takes it, or any machine can."""
        if record.home is None:
            return True
        node_id = self.node_of(record)
        return node_id is not None and node_id not in self.nodes.cordoned()

    def must_move(self, record: SandboxRecord) -> bool:
        """Whether it starts only on another machine, and can be moved there: nothing new is to start on its own, or
        that had no room for it. Memory does not move."""
        node_id = None if record.home is None else self.node_of(record)
        if node_id is None or record.suspended or not self.movable(node_id):
            return False
        return node_id in self.nodes.cordoned() or isinstance(record.failure, NoCapacity)

    def _fits_elsewhere(self, node_id: str, record: SandboxRecord) -> bool:
        if record.suspended or not self.movable(node_id):
            return False
        try:
            self.pool.check_room(self.pool.stock.request(record.launch_spec))
        except NoCapacity:
            return False
        return True

    async def _slot_on(self, node_id: str, record: SandboxRecord) -> Slot:
        slot = self.maker.create(record.spec.slot_shape, node_id)
        placing = tasks.shared(self.maker.placed(slot), "place slot")
        try:
            await asyncio.wait([placing], timeout=_PATIENCE_S)
            if not placing.done():
                self.pool.let_go(node_id)
                await asyncio.wait([placing], timeout=_CROWDED_S)
            while not placing.done():
                if self._fits_elsewhere(node_id, record):
                    raise NoCapacity(f"machine {_name(record)} has no room for {record.id}, and another one has")
                await asyncio.wait([placing], timeout=_CROWDED_S)
            await placing
        except BaseException:
            placing.cancel()
            self.maker.kill(slot)
            raise
        return slot


def kept(outcome: Outcome) -> Outcome:
    """What ends another sandbox stops a persistent one."""
    if outcome.event is not Event.ENDED or outcome.end is None:
        return outcome
    return Outcome(Event.NOT_ADOPTED, end=replace(outcome.end, kept=True))


def machine_missing(record: SandboxRecord) -> FailedPrecondition:
    """The error for who wants to start a sandbox whose machine is not there."""
    return FailedPrecondition(
        f"sandbox {record.id} has its disk on machine {_name(record)}, which is not part of the cluster now; "
        "start it once that is back, or terminate it",
        state=State.STOPPED.value,
        machine=None if record.home is None else record.home.machine,
    )


def machine_cordoned(record: SandboxRecord, why: str) -> FailedPrecondition:
    """The error for who wants to start a sandbox on whose machine nothing new is to start."""
    return FailedPrecondition(
        f"sandbox {record.id} has its disk on machine {_name(record)}, which is cordoned ({why}); "
        "start it once that is uncordoned",
        state=State.STOPPED.value,
        machine=None if record.home is None else record.home.machine,
    )


def _name(record: SandboxRecord) -> str:
    home = record.home
    return "" if home is None else f"{home.hostname} ({home.machine})" if home.hostname else home.machine
