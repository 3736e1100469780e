"""Pretend machines with pretend sandbox actors, behind the contracts by which the controller knows the real ones."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.actors.controller.placement import ANYWHERE, Selector
from shoal.actors.controller.room import Amount, NodeRoom
from shoal.actors.controller.slot import Slot
from shoal.actors.messages import ContainerStarted, End, SandboxStarted
from shoal.actors.names import REGION_LABEL
from shoal.model.errors import SandboxNotFound, Unavailable
from shoal.model.info import NodeInfo
from shoal.model.spec import MIB, ContainerShape, SandboxSpec, SlotShape
from shoal.model.states import Reason
from shoal.model.usage import UsageReport

_PLACE_ATTEMPTS = 50  # as `RaySlotMaker`


@dataclass(frozen=True, slots=True)
class MachineType:
    """A kind of machine: cores, MiB, where it stands, and seconds from its launch until it has joined."""

    name: str
    region: str
    cpu: float = 32.0
    memory: int = 128 * 1024
    boot_s: float = 75.0

    @property
    def size(self) -> Amount:
        return Amount(self.cpu, float(self.memory))


@dataclass(eq=False, slots=True)
class Machine:
    """One that has joined. `actor`: whether Shoal's node actor is on it, which makes it busy to Ray."""

    id: str
    type: MachineType
    joined_at: float
    alive: bool = True
    actor: bool = False
    slots: set[SlotActor] = field(default_factory=set)
    idle_since: float = 0.0
    free: Amount = field(init=False)

    def __post_init__(self) -> None:
        self.free = self.type.size
        self.idle_since = self.joined_at

    def take(self, slot: SlotActor) -> None:
        self.slots.add(slot)
        self.free = self.free.minus(slot.shape)

    def release(self, slot: SlotActor) -> None:
        self.slots.remove(slot)
        self.free = self.free.plus(slot.shape)
        self.idle_since = time.monotonic()


@dataclass(eq=False, slots=True)
class SlotActor:
    """A sandbox actor. `machine`: None while it is pending; `placed`: done once it runs, or has died."""

    fleet: Fleet
    id: str
    shape: SlotShape
    selector: Selector
    only: str | None
    placed: asyncio.Future[None]
    since: float
    machine: Machine | None = None
    sandbox_id: str | None = None
    prepared: ContainerShape | None = None
    pool: str = ""
    released: asyncio.Future[str] | None = None
    end: asyncio.Future[End] | None = None
    alive: bool = True

    container: ContainerStarted | None = None

    async def prepare(self, shape: ContainerShape, pool: str) -> ContainerStarted:
        await asyncio.sleep(self.fleet.start_s)
        if not self.alive or self.machine is None:
            raise _gone()
        self.container = ContainerStarted(f"c-{self.id}", self.machine.id, "127.0.0.1:1", "token", warm=True)
        self.prepared, self.pool = shape, pool
        self.released = asyncio.get_running_loop().create_future()
        return self.container

    async def unready(self) -> str:
        return "it has none" if self.released is None else await asyncio.shield(self.released)

    async def release(self) -> None:
        self.prepared = self.container = None
        if self.released is not None and not self.released.done():
            self.released.set_result("")

    async def start(self, sandbox_id: str, wanted: SandboxSpec) -> SandboxStarted:
        self.sandbox_id = sandbox_id
        self.end = asyncio.get_running_loop().create_future()
        warm = self.prepared is not None
        await self.release()
        if not warm:
            await asyncio.sleep(self.fleet.start_s)
        if not self.alive or self.machine is None:
            raise _gone()
        return SandboxStarted(f"c-{sandbox_id}", self.machine.id, "127.0.0.1:1", time.time(), warm)

    async def hold(self, sandbox_id: str, wanted: SandboxSpec, started_at: float, key: str) -> End:
        if self.sandbox_id is None and self.container is not None and self.container.key == key:
            await self.start(sandbox_id, wanted)
        return await self.ended(sandbox_id)

    async def ended(self, sandbox_id: str) -> End:
        return await asyncio.shield(self._held(sandbox_id))

    async def terminate(self, sandbox_id: str, message: str) -> End:
        end = self._held(sandbox_id)
        await asyncio.sleep(self.fleet.end_s)
        if not end.done():
            end.set_result(End(Reason.TERMINATED, None, message, time.time()))
        return end.result()

    async def wipe(self, sandbox_id: str) -> None:
        if self.sandbox_id == sandbox_id:
            self.sandbox_id = self.end = None

    def die(self) -> None:
        self.alive = False
        if self.end is not None and not self.end.done():
            self.end.set_exception(_gone())
            self.end.exception()  # nobody may be waiting for it
        for waiting in (self.placed, self.released):
            if waiting is not None and not waiting.done():
                waiting.set_exception(_gone())
                waiting.exception()

    def _held(self, sandbox_id: str) -> asyncio.Future[End]:
        if self.sandbox_id != sandbox_id or self.end is None:
            raise SandboxNotFound(f"{self.id} does not hold {sandbox_id}")
        return self.end


@dataclass(slots=True)
class Fleet:
    """All machines, and the sandbox actors on them or waiting for one.

    `worker_s`: how long a Ray worker takes to start, `start_s`: a container with its agent, `end_s`: the end of one; by
    default as measured on two cores.
    """

    worker_s: float = 0.5
    start_s: float = 0.06
    end_s: float = 0.03
    machines: dict[str, Machine] = field(default_factory=dict)
    pending: dict[str, SlotActor] = field(default_factory=dict)
    slots: dict[str, SlotActor] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _background: set[asyncio.Task[None]] = field(default_factory=set)

    # -- machines come and go -----------------------------------------------------------------------

    def join(self, kind: MachineType, machine_id: str | None = None) -> Machine:
        """`machine_id`: the one under which it was launched."""
        machine = Machine(machine_id or f"m-{next(self._numbers)}", kind, time.monotonic())
        self.machines[machine.id] = machine
        self._fill(machine)
        return machine

    def lose(self, machine: Machine) -> None:
        """It is gone, with all that ran there."""
        machine.alive = False
        del self.machines[machine.id]
        for slot in list(machine.slots):
            slot.die()
            self.slots.pop(slot.id, None)
        machine.slots.clear()

    def _place(self, slot: SlotActor) -> None:
        """As Ray does: it starts on the fullest machine that takes it, or waits."""
        if slot.only is not None:
            pinned = self.machines.get(slot.only)
            fitting = [pinned] if pinned is not None and _admits(pinned, slot) else []
        else:
            fitting = [machine for machine in self.machines.values() if _admits(machine, slot)]
        if fitting:
            self._settle(slot, min(fitting, key=lambda machine: machine.free.cpu))
        else:
            self.pending[slot.id] = slot

    def _fill(self, machine: Machine) -> None:
        """Room came free there: whoever waits and fits gets it."""
        if machine.free.cpu <= 0:
            return
        for slot in [slot for slot in self.pending.values() if _admits(machine, slot)]:
            if machine.free.covers(slot.shape):
                del self.pending[slot.id]
                self._settle(slot, machine)

    def _settle(self, slot: SlotActor, machine: Machine) -> None:
        slot.machine = machine
        machine.take(slot)
        self._later(self._started(slot))

    async def _started(self, slot: SlotActor) -> None:
        await asyncio.sleep(self.worker_s)
        if not slot.placed.done():
            slot.placed.set_result(None)

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- as `ray.nodes` and `shoal.actors.handles.call` -----------------------------------------------

    def list_machines(self) -> Sequence[Mapping[str, Any]]:
        return [
            {
                "NodeID": machine.id,
                "Alive": True,
                "Resources": {"CPU": machine.type.cpu, "memory": machine.type.memory * MIB},
                "Labels": {REGION_LABEL: machine.type.region},
                "NodeManagerAddress": "127.0.0.1",
                "NodeManagerHostname": machine.id,
            }
            for machine in self.machines.values()
        ]

    async def call(self, handle: Any, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        if isinstance(handle, Machine):
            return await self._call_node(handle, method)
        if not handle.alive:
            raise _gone()
        return await getattr(handle, method)(*args)

    async def _call_node(self, machine: Machine, method: str) -> Any:
        await asyncio.sleep(0)
        if not machine.alive:
            raise _gone()
        if method == "info":
            return _info(machine)
        if method == "close_off":
            return ["127.0.0.1"]
        if method == "series":
            return {}
        if method == "usage_report":
            return UsageReport(0, {})
        if method == "close":
            machine.actor = False
        return None

    def kill_node_actor(self, handle: Any) -> None:
        handle.actor = False
        handle.idle_since = time.monotonic()

    # -- a maker of slots -----------------------------------------------------------------------------

    def create(self, shape: SlotShape, node_id: str | None = None, selector: Selector = ANYWHERE) -> Slot:
        made = SlotActor(
            self,
            f"slot-{next(self._numbers)}",
            shape,
            selector,
            node_id,
            asyncio.get_running_loop().create_future(),
            time.monotonic(),
        )
        self.slots[made.id] = made
        self._place(made)
        return Slot(made.id, shape, made)

    async def placed(self, slot: Slot) -> None:
        actor = slot.handle
        await asyncio.shield(actor.placed)
        for _ in range(_PLACE_ATTEMPTS):
            if actor.machine is not None and actor.machine.actor:
                slot.node_id = actor.machine.id
                return
            await asyncio.sleep(0.1)  # the node actor of a new machine is yet to come
        raise Unavailable("no node actor")

    def kill(self, slot: Slot) -> None:
        actor = slot.handle
        if self.slots.pop(actor.id, None) is None:
            return
        self.pending.pop(actor.id, None)
        if actor.machine is not None:
            actor.machine.release(actor)
            self._fill(actor.machine)
        actor.die()

    async def rooms(self) -> Mapping[str, NodeRoom]:
        return {
            machine.id: NodeRoom(machine.type.size, machine.free, machine.type.region)
            for machine in self.machines.values()
        }

    async def existing(self) -> list[str]:
        return list(self.slots)

    async def describe(self, slot_id: str) -> tuple[Slot, str | None] | None:
        actor = self.slots.get(slot_id)
        if actor is None:
            return None
        await asyncio.shield(actor.placed)
        assert actor.machine is not None
        slot = Slot(actor.id, actor.shape, actor, actor.machine.id, prepared=actor.prepared, pool=actor.pool)
        if actor.sandbox_id is None and actor.container is not None:
            slot.untold = actor.container.key
        return slot, actor.sandbox_id


def _admits(machine: Machine, slot: SlotActor) -> bool:
    if not machine.free.covers(slot.shape):
        return False
    if slot.only is not None:  # asked for there: Ray is told no selector
        return slot.only == machine.id
    selector = slot.selector
    return machine.id not in selector.not_nodes and (not selector.regions or machine.type.region in selector.regions)


def _info(machine: Machine) -> NodeInfo:
    kind = machine.type
    return NodeInfo(
        id=machine.id,
        address="127.0.0.1:1",
        hostname=machine.id,
        region=kind.region,
        engine="pretend",
        runtimes=("runc",),
        alive=True,
        sandboxes=sum(slot.sandbox_id is not None for slot in machine.slots),
        warm=0,
        cpu_total=kind.cpu,
        cpu_free=machine.free.cpu,
        memory_total=kind.memory,
        memory_free=int(machine.free.memory),
        pids=1 << 20,
        disk_total=1 << 30,
    )


def _gone() -> Unavailable:
    return Unavailable("the actor is gone", actor="gone")
