"""A machine in memory under the controller's real parts: slots that hold sandboxes, a node with containers, a disk;
controllers can be killed.

What a controller asked of a slot goes on when that controller dies, as an actor's method does.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from shoal.actors.controller.machine import Machine
from shoal.actors.controller.nodes import Node, Nodes
from shoal.actors.controller.object_storage import ObjectStorage
from shoal.actors.controller.parts import Parts, open_parts
from shoal.actors.controller.placement import ANYWHERE, Selector
from shoal.actors.controller.room import Amount, NodeRoom
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.store import Change
from shoal.actors.messages import End, NodeImage
from shoal.model.errors import DeadlineExceeded, FailedPrecondition, NotFound, ShoalError, Unavailable
from shoal.model.secrets import SecretValues
from shoal.model.settings import Settings
from shoal.model.spec import ContainerShape, SlotShape
from shoal.model.states import Reason
from tests.fakes.objects import MemoryKeeper
from tests.unit.builders import spec
from tests.unit.fake_slot import MACHINE, NODE, FakeSlot
from tests.unit.memory_store import Disk, MemoryStore

T = TypeVar("T")
SECRET = b"s" * 32


class FakeNodes(Nodes):
    """One machine that always answers, unless the world says that it is away."""

    world: World

    def of_machine(self, machine: str) -> str | None:
        return NODE if machine == MACHINE and not self.world.away else None

    async def refresh(self, *, wait_s: float = 0.0, new_only: bool = False) -> list[str]:
        return []

    def machines(self) -> frozenset[Machine]:
        return frozenset(self.capacities().values())

    def capacities(self) -> dict[str, Machine]:
        return {NODE: Machine(64.0, 1 << 20, 64.0, 1 << 20, 0, None, ("runc", "runsc"), 24576)}

    def alive(self, node_id: str) -> bool:
        return True

    def handle(self, node_id: str) -> Any:
        return "node"

    def fetches(self, node_id: str) -> bool:
        return self.world.fetching

    def handles(self) -> list[Any]:
        return ["node"]

    def relay(self, node_id: str, otherwise: str) -> str:
        return otherwise


_life: ContextVar[set[asyncio.Task[Any]] | None] = ContextVar("life", default=None)
"""The tasks of the controller on whose behalf something runs: they die with it."""


@dataclass
class Controller:
    """One life of the controller."""

    parts: Parts
    store: Store
    tasks: set[asyncio.Task[Any]]

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Has the controller do something."""
        token = _life.set(self.tasks)
        try:
            return asyncio.create_task(work)
        finally:
            _life.reset(token)

    async def kill(self) -> None:
        """SIGKILL: none of its tasks goes on, nothing more is written."""
        self.store.die()
        while alive := [task for task in self.tasks if not task.done()]:
            for task in alive:
                task.cancel()
            await asyncio.wait(alive)


class Store(MemoryStore):
    """A world's store: a test sees each write before and after it, may hold it up, and may let it fail: before it
    nothing was done, after it the answer is lost.
    """

    def __init__(self, world: World, die_after: int | None) -> None:
        super().__init__(world.disk, die_after)
        self._world = world

    async def _write(self, change: Change, rows: dict[str, str]) -> None:
        await self._world.before_write(change)
        await super()._write(change, rows)
        await self._world.after_write(change)


async def _nothing(change: Change) -> None:
    pass


@dataclass
class World:
    """What outlives a controller.

    `stopped`: the containers of persistent sandboxes that are stopped; `away`: the machine that has them is.
    `memories`: sandboxes of which it keeps the memory; `resumed`: those that run and went on from theirs; `suspend_s`,
    `suspend_fails`: how long saving it takes, and what it fails with.

    `capacity`: how many slots Ray has room for; `start_s`: how long a slot takes to start a sandbox, `remove_s`: the
    node to remove one; `new_slots_fail`: what the first start in a new slot fails with; `before_write`, `after_write`:
    what comes between a controller and its disk. `nodes`: how often each was closed; `nodes_fail`: what that fails
    with. `prepared`: the containers that slots keep ready, `prepare_s`: how long preparing one takes, `prepare_fails`:
    what it fails with; `room`: how many slots of the default shape Ray says that it has room for.
    `images`: those of sandboxes that the machine has, by id; `images_in_use`: those that it refuses to remove;
    `snapshot_s`, `snapshot_fails`: how long taking one lasts, and what it fails with.
    """

    disk: Disk = field(default_factory=Disk)
    slots: dict[str, FakeSlot] = field(default_factory=dict)
    containers: dict[str, str] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    away: bool = False
    memories: set[str] = field(default_factory=set)
    resumed: set[str] = field(default_factory=set)
    suspend_s: float = 0.0
    suspend_fails: ShoalError | None = None
    starts: list[str] = field(default_factory=list)
    capacity: int = 100
    start_s: float = 0.0
    remove_s: float = 0.0
    new_slots_fail: ShoalError | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=lambda: {NODE: 0})
    nodes_fail: dict[str, ShoalError] = field(default_factory=dict)
    prepared: dict[str, ContainerShape] = field(default_factory=dict)
    unclaimed: set[str] = field(default_factory=set)
    prepare_s: float = 0.0
    prepare_fails: ShoalError | None = None
    room: int = 0
    images: dict[str, str] = field(default_factory=dict)
    images_in_use: list[str] = field(default_factory=list)
    snapshot_s: float = 0.0
    snapshot_fails: ShoalError | None = None
    paused: set[str] = field(default_factory=set)
    pause_s: float = 0.0
    pause_fails: ShoalError | None = None
    mounted: dict[str, dict[str, str]] = field(default_factory=dict)
    """The image at each path of each sandbox."""
    mount_s: float = 0.0
    mount_fails: ShoalError | None = None
    background: set[asyncio.Task[Any]] = field(default_factory=set)
    told_secrets: dict[str, SecretValues | None] = field(default_factory=dict)
    """What slots were told of sandboxes' secrets."""
    pulls: list[tuple[str, ...]] = field(default_factory=list)
    """Images that a node pulled with credentials, and these."""
    fetching: bool = False
    """Whether nodes fetch images from the object storage."""
    stores: list[tuple[Any, ...]] = field(default_factory=list)
    store_fails: list[ShoalError] = field(default_factory=list)
    objects: MemoryKeeper = field(default_factory=MemoryKeeper)
    before_write: Callable[[Change], Awaitable[None]] = _nothing
    after_write: Callable[[Change], Awaitable[None]] = _nothing

    async def controller(self, die_after: int | None = None) -> Controller:
        """A new one, which takes up what the last left. Nothing it does after its `die_after`-th write ever returns."""
        asyncio.get_running_loop().set_task_factory(_make_task)
        store = Store(self, die_after)
        settings = Settings.model_validate({"pools": {"idle_slots": 0, "ready": 0}, **self.settings})
        nodes = FakeNodes(settings, "cluster", SECRET, self.call)
        nodes.world = self
        for name in self.nodes:
            nodes._nodes[name] = Node(name, cast("Any", name), {}, {}, f"host-{name}")
        tasks: set[asyncio.Task[Any]] = set()
        token = _life.set(tasks)
        try:
            parts = await open_parts(
                settings,
                SECRET,
                store,
                nodes,
                self,
                _not_overtaken,
                call=self.call,
                objects=ObjectStorage(self.objects, "cluster"),
            )
        finally:
            _life.reset(token)
        return Controller(parts, store, tasks)

    async def call(self, handle: Any, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        """As `shoal.actors.handles.call`: what is called goes on, whatever becomes of the caller."""
        if method == "close":
            self.nodes[handle] += 1
            if handle in self.nodes_fail:
                raise self.nodes_fail[handle]
            return None
        if method == "release_containers":
            for slot_id in args[0]:
                self.prepared.pop(slot_id, None)
            return None
        if method in ("pause_sandbox", "resume_sandbox"):
            return await self._pause(method, *args)
        if method == "snapshot_sandbox":
            return await self._snapshot(*args)
        if method == "pull_image":
            self.pulls.append((args[0], *args[2:]))
            return NodeImage(f"sha256:{hashlib.sha256(args[0].encode()).hexdigest()}", 1, {"env": {}})
        if method == "checkpoint_sandbox":
            return await self._snapshot(*args, None)
        if method == "snapshot_directory":
            return await self._snapshot(args[0], args[1], None)
        if method in ("mount_image", "unmount_image"):
            return await self._mount(method, *args)
        if method == "store_image":
            self.stores.append(args)
            if self.store_fails:
                raise self.store_fails.pop(0)
            return None
        if method == "let_go_mount":
            return None
        if method == "remove_image":
            if set(self.images_in_use) & {args[0]}:
                raise FailedPrecondition("a container uses it", state="in_use")
            self.images.pop(args[0], None)
            return None
        if method == "end_container":
            await asyncio.sleep(self.remove_s)
            return self._end_container(*args)
        if handle == "node":
            await asyncio.sleep(self.remove_s)
            if method == "stop_sandbox":
                self.put_away(args[0])
                return None
            if method in ("suspend_sandbox", "undo_restart", "forget_memory"):
                return await self._suspend(method, *args)
            assert method == "remove_sandbox"
            self.containers.pop(args[0], None)
            self.stopped.pop(args[0], None)
            return None
        if not handle.alive:
            raise Unavailable("gone", actor="gone")
        token = _life.set(None)
        try:
            work = asyncio.create_task(getattr(handle, method)(*args))
        finally:
            _life.reset(token)
        self.background.add(work)
        work.add_done_callback(self._seen)
        if not (await asyncio.wait([work], timeout=timeout_s))[0]:
            raise DeadlineExceeded(f"{method} took longer than {timeout_s} s")
        return work.result()

    async def _pause(self, method: str, sandbox_id: str) -> None:
        await asyncio.sleep(self.pause_s)
        if method == "pause_sandbox" and (failure := self.pause_fails) is not None:
            raise failure
        if sandbox_id not in self.containers:
            raise NotFound("no container")
        self.paused.discard(sandbox_id)
        if method == "pause_sandbox":
            self.paused.add(sandbox_id)

    async def _mount(self, method: str, sandbox_id: str, *args: str) -> None:
        await asyncio.sleep(self.mount_s)
        if sandbox_id not in self.containers:
            raise NotFound("no container")
        mounted = self.mounted.setdefault(sandbox_id, {})
        if method == "unmount_image":
            mounted.pop(args[0], None)
        elif self.mount_fails is not None:
            raise self.mount_fails
        else:
            mounted[args[1]] = args[0]

    async def _suspend(self, method: str, sandbox_id: str) -> bool:
        if method == "forget_memory":
            self.memories.discard(sandbox_id)
            return True
        if method == "suspend_sandbox":
            await asyncio.sleep(self.suspend_s)
            if self.suspend_fails is not None:
                raise self.suspend_fails
            if sandbox_id not in self.containers and sandbox_id not in self.memories:
                raise NotFound("no container")
        if method == "suspend_sandbox" or sandbox_id in self.resumed:
            self.memories.add(sandbox_id)
        self.put_away(sandbox_id)
        for slot in self.slots.values():
            if slot.alive and slot.sandbox_id == sandbox_id and slot.end is not None and not slot.end.done():
                slot.end.set_result(End(Reason.STOPPED, None, "its container was stopped", time.time(), True))
        return True

    async def _snapshot(self, sandbox_id: str, image_id: str, config: dict[str, Any] | None) -> NodeImage:
        self.images[image_id] = sandbox_id  # what a node makes is there, whoever waits for it
        await asyncio.sleep(self.snapshot_s)
        if (failure := self.snapshot_fails) is not None:
            del self.images[image_id]
            raise failure
        if sandbox_id not in {*self.containers, *self.stopped}:
            raise NotFound("no container")
        digest = f"sha256:{hashlib.sha256(image_id.encode()).hexdigest()}"
        return NodeImage(digest, 1 << 20, {"env": {}} if config is None else dict(config))

    def _seen(self, work: asyncio.Task[Any]) -> None:
        self.background.discard(work)
        if not work.cancelled():
            work.exception()

    def end(self, sandbox_id: str, returncode: int, *, kept: bool = False) -> None:
        """A sandbox's command ends. `kept`: of a persistent one."""
        (slot,) = (slot for slot in self.slots.values() if slot.sandbox_id == sandbox_id)
        assert slot.end is not None
        if kept:
            self.put_away(sandbox_id)
        else:
            self.containers.pop(sandbox_id)
        message = f"its command ended with {returncode}"
        slot.end.set_result(End(Reason.COMPLETED, returncode, message, time.time(), kept))

    def claim(self, key: str, sandbox_id: str) -> None:
        """A container that a slot kept ready is a sandbox's now."""
        self.unclaimed.remove(key)
        self.starts.append(sandbox_id)
        assert sandbox_id not in self.containers, "a sandbox has two containers"
        self.containers[sandbox_id] = key

    def _end_container(self, key: str, sandbox_id: str) -> bool:
        """The node ends one; its slot, if it lives, hears of it."""
        if key in self.unclaimed:
            self.claim(key, sandbox_id)
        if self.containers.get(sandbox_id) != key:
            return False
        del self.containers[sandbox_id]
        for slot in self.slots.values():
            if slot.alive and slot.sandbox_id == sandbox_id:
                slot.hear_of_removal()
        return True

    def put_away(self, sandbox_id: str) -> None:
        """A persistent sandbox's container is stopped. Idempotent."""
        self.resumed.discard(sandbox_id)
        key = self.containers.pop(sandbox_id, None)
        if key is not None:
            self.stopped[sandbox_id] = key

    async def idle_slot(self, controller: Controller) -> FakeSlot:
        """One of the default shape that is ready for its first sandbox."""
        slot = self.create(spec().slot_shape)
        await self.placed(slot)
        controller.parts.pool.put(slot)
        return self.slots[slot.id]

    # A maker of slots

    def create(self, shape: SlotShape, node_id: str | None = None, selector: Selector = ANYWHERE) -> Slot:
        made = FakeSlot(self, f"slot-{len(self.slots)}", shape, fails=self.new_slots_fail)
        self.slots[made.id] = made
        return Slot(made.id, shape, made)

    async def placed(self, slot: Slot) -> None:
        while not self._has_place(slot):  # noqa: ASYNC110 - any slot's end may make the place
            await asyncio.sleep(0.001)
        if not slot.handle.alive:
            raise Unavailable("gone", actor="gone")
        slot.node_id = NODE

    def _has_place(self, slot: Slot) -> bool:
        before = list(self.slots.values())[: int(slot.id.removeprefix("slot-")) + 1]
        return sum(other.alive for other in before) <= self.capacity

    def kill(self, slot: Slot) -> None:
        slot.handle.alive = False

    async def rooms(self) -> dict[str, NodeRoom]:
        free = self.room - sum(slot.alive for slot in self.slots.values())
        shape = spec().slot_shape
        total, left = (Amount(number * shape.cpu, number * shape.memory) for number in (self.room, free))
        return {NODE: NodeRoom(total, left)} if self.room else {}

    async def existing(self) -> list[str]:
        return [slot.id for slot in self.slots.values() if slot.alive]

    async def describe(self, slot_id: str) -> tuple[Slot, str | None] | None:
        slot = self.slots[slot_id]
        await asyncio.sleep(0)
        known = Slot(slot.id, slot.shape, slot, NODE, prepared=slot.prepared, pool=slot.pool)
        if slot.sandbox_id is None and slot.container is not None:
            known.untold = slot.container.key
        return (known, slot.sandbox_id) if slot.alive else None


class Refusal:
    """A world's store that holds up the first write from now on, and refuses it in the end."""

    def __init__(self, world: World) -> None:
        self.come = asyncio.Event()
        self.refuse = asyncio.Event()
        world.before_write = self.before_write

    async def before_write(self, change: Change) -> None:
        first = not self.come.is_set()
        self.come.set()
        await self.refuse.wait()  # those behind it wait too: a store has one writer
        if first:
            raise Unavailable("the store does not answer; nothing was done")


class Away:
    """A world's store that is away. `refused`: the sandboxes whose writes it has refused."""

    def __init__(self, world: World) -> None:
        self.refused: set[str] = set()
        self._world = world
        self._before = world.before_write
        world.before_write = self.before_write

    async def before_write(self, change: Change) -> None:
        self.refused |= {row["id"] for row in change.sandboxes}
        raise Unavailable("the store does not answer; nothing was done")

    def back(self) -> None:
        self._world.before_write = self._before


async def steps(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def until(true: Callable[[], bool], what: str) -> None:
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"it never came to be: {what}")


def _not_overtaken() -> None:
    raise AssertionError("another controller has taken over")


def _make_task(loop: asyncio.AbstractEventLoop, work: Any, context: Any = None) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context)
    if (tasks := _life.get()) is not None:
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    return task
