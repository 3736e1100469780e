"""A cluster in memory: the controller's real parts, over slots that hold fake agents. It remembers calls and injects
one failure.

Its sandboxes have files, an empty directory for each volume, a handful of programs (`agent.py`), an echo on port 7 and
a web page on port 8080, and end when they are terminated or their command ends.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import hashlib
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar

from shoal.actors.controller.handlers import answer, handlers
from shoal.actors.controller.machine import Machine
from shoal.actors.controller.nodes import Node, Nodes
from shoal.actors.controller.object_storage import ObjectStorage
from shoal.actors.controller.parts import Parts, open_parts
from shoal.actors.controller.placement import ANYWHERE, Selector
from shoal.actors.controller.room import Amount, NodeRoom
from shoal.actors.controller.slot import Slot
from shoal.actors.messages import End, NodeImage, SandboxStarted
from shoal.actors.node.program_metrics import gateway_series, relay_series
from shoal.model import tasks, verbs
from shoal.model.access import INSIDE, MAIN_ENVIRONMENT, Caller, Quota, Tunnel
from shoal.model.errors import NotFound, SandboxNotFound, ShoalError, Unavailable
from shoal.model.ids import MAIN_PROCESS, new_slot_id
from shoal.model.info import NodeInfo
from shoal.model.settings import Settings
from shoal.model.spec import SandboxSpec, SlotShape
from shoal.model.states import Reason
from shoal.model.usage import SandboxLoad, SandboxUsage, UsageReport
from shoal.model.verbs import Verb
from shoal.transport.ray import RayTransport
from shoal.wire.agent import Agent, Start
from shoal.wire.bytestream import ByteStream
from tests.fakes.agent import FakeAgent, FakeProcess
from tests.fakes.objects import MemoryKeeper
from tests.fakes.streams import Serve, connect, echo, web
from tests.fakes.volumes import MemoryVolumes
from tests.unit.memory_store import Disk, MemoryStore

P = ParamSpec("P")
R = TypeVar("R")

NODE = "node-fake"
MACHINE = "m-fake"
_SECRET = bytes(range(32))
_TICK_S = 0.01
_KIND = {"open": 1, "classes": [0, 0, 3, 0, 1, 0], "rejected": 1, "received": 5, "sent": 9, "seconds": 0.5}
_GATEWAY: dict[str, Any] = {"connections": 2, "replicas": 1, "bounds": [0.1, 1]}
_GATEWAY |= {kind: {**_KIND, "buckets": [3, 1, 0]} for kind in ("api", "tunnel")}
_RELAY = {"open": 1, "connections": 4, "rejected": 2, "containers": 1}
"""What the programs of a node answer to `metrics`."""
_PATIENCE_S = 20.0


class FakeTransport(RayTransport):
    """The transport to a cluster in memory. `calls` holds (name, first argument) of every call to it and to its agents.

    `start_s`: seconds for which a new sandbox is pending. `ports`: what answers on a sandbox's ports; `serve_channel`:
    what is at the other end of a channel, an echo unless a test says better.
    """

    def __init__(self, environments: Sequence[str] = (MAIN_ENVIRONMENT, "dev")) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.ports: dict[int, Serve] = {7: echo, 8080: web}
        self.serve_channel: Serve = echo
        self._faults: dict[str, list[ShoalError]] = {}
        self._served: set[asyncio.Task[None]] = set()
        self._cluster = _Cluster(self.note)
        run(self._cluster.open(environments)).result(_PATIENCE_S)
        super().__init__(self._cluster.handle)  # type: ignore[arg-type]
        weakref.finalize(self, run, self._cluster.close)

    @property
    def start_s(self) -> float:
        return self._cluster.start_s

    @start_s.setter
    def start_s(self, seconds: float) -> None:
        self._cluster.start_s = seconds

    def use_builder(self, builder: Any) -> None:
        """What builds images from now on: an object with the builder actor's methods."""
        self._cluster.use_builder(builder)

    @property
    def disk(self) -> Disk:
        """What the controller has written."""
        return self._cluster.disk

    def fail_next(self, call: str, error: ShoalError) -> None:
        """The next call of that name raises `error`; said again, the one after it too."""
        self._faults.setdefault(call, []).append(error)

    def note(self, call: str, argument: Any = None) -> None:
        """Remembers a call, and raises what was injected for it."""
        self.calls.append((call, argument))
        if faults := self._faults.get(call):
            raise faults.pop(0)

    def named(self, call: str) -> list[Any]:
        """The first arguments of all calls of that name so far."""
        return [argument for name, argument in self.calls if name == call]

    async def ask(self, verb: Verb[P, R], /, *args: P.args, **options: P.kwargs) -> R:
        self.note(verb.name, next(iter(verb.in_order(args, options)), None))
        return await super().ask(verb, *args, **options)

    async def expose(self, sandbox_id: str, port: int, *, protocol: str, public: bool) -> Tunnel:
        return await self.ask(verbs.expose, sandbox_id, port, protocol, public)

    async def unexpose(self, sandbox_id: str, port: int) -> None:
        await self.ask(verbs.unexpose, sandbox_id, port)

    async def agent(self, sandbox_id: str) -> Agent:
        self.note("agent", sandbox_id)
        return await self._agent(sandbox_id)

    async def channel(self, sandbox_id: str) -> ByteStream:
        self.note("channel", sandbox_id)
        await self._agent(sandbox_id)
        return connect(self.serve_channel, self._served)

    async def dial(self, sandbox_id: str, port: int) -> ByteStream:
        self.note("dial", port)
        await self._agent(sandbox_id)
        if port not in self.ports:
            message = f"nothing listens on port {port} in sandbox {sandbox_id}; start a server there"
            raise Unavailable(message, port=port)
        return connect(self.ports[port], self._served)

    async def close(self) -> None:
        self.note("close")
        await super().close()

    async def _agent(self, sandbox_id: str) -> FakeAgent:
        await super().ask(verbs.grant, sandbox_id)
        return self._cluster.agents[sandbox_id]


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The loop in which all clusters in memory live. Their callers come from many others."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="clusters in memory", daemon=True).start()
    return loop


def run(work: Any) -> Future[Any]:
    """Has a coroutine, or what a function gives, done in the clusters' loop."""
    return asyncio.run_coroutine_threadsafe(work if asyncio.iscoroutine(work) else work(), _loop())


def stop_all() -> None:
    """Stops all clusters in memory for good. An interpreter that ends must not take their threads from under them."""

    async def stop() -> None:
        await tasks.stop(*asyncio.all_tasks() - {asyncio.current_task()})

    run(stop).result(_PATIENCE_S)


class _Cluster:
    """The controller's parts, and the one machine that they know. A maker of slots."""

    def __init__(self, note: Callable[[str, Any], None]) -> None:
        self.note = weakref.WeakMethod(note)  # type: ignore[arg-type]
        self.start_s = 0.0
        self.agents: dict[str, FakeAgent] = {}
        self.mains: dict[str, FakeProcess] = {}
        self.handle = SimpleNamespace(call=SimpleNamespace(remote=self._answer))
        self._store = MemoryStore(Disk())
        self._parts: Parts | None = None
        self._handlers: Any = {}

    async def open(self, environments: Sequence[str]) -> None:
        # A key in a file of the state directory would be this machine's own.
        keys = {"key_command": f"echo {base64.b64encode(_SECRET).decode()}"}
        settings = Settings.model_validate({"pools": {"idle_slots": 0, "ready": 0}, "secrets": keys})
        nodes = _Nodes(settings, "cluster", _SECRET, living=self._living)
        self._parts = await open_parts(
            settings,
            _SECRET,
            self._store,
            nodes,
            self,
            _overtaken,
            self._call,
            objects=ObjectStorage(MemoryKeeper(), "cluster"),
            keeper=MemoryVolumes(),
        )
        self._handlers = handlers(self._parts)
        for name in set(environments) - {MAIN_ENVIRONMENT}:
            await answer(self._handlers, "create_environment", (name, Quota()), INSIDE)

    async def close(self) -> None:
        for process in self.mains.values():
            process.kill(9)
        if self._parts is not None:
            runs = self._parts.supervisor._runs.values()
            await tasks.stop(*self._parts._loops, *(run.task for run in runs if run.task is not None))

    def use_builder(self, builder: Any) -> None:
        assert self._parts is not None
        self._parts.builds.start_builder = lambda: builder
        self._parts.builds._builder = builder

    @property
    def disk(self) -> Disk:
        return self._store.disk

    def _living(self) -> int:
        return 0 if self._parts is None else len(self._parts.registry.live())

    def _answer(
        self, verb: str, arguments: tuple[Any, ...], caller: Caller, carrier: Mapping[str, str] | None = None
    ) -> Any:
        """As an actor's method: what it does goes on, whatever becomes of who asked; and of what that belongs to it
        knows only what it is told."""
        work = answer(self._handlers, verb, arguments, caller, carrier)
        result = asyncio.wrap_future(contextvars.Context().run(run, work))
        result.add_done_callback(_note_error)
        return asyncio.shield(result)

    async def _call(self, handle: Any, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        """As `shoal.actors.handles.call`."""
        async with asyncio.timeout(timeout_s):
            return await getattr(self if handle is NODE else handle, method)(*args)

    # What a node answers

    async def remove_sandbox(self, sandbox_id: str) -> None:
        pass

    async def end_container(self, key: str, sandbox_id: str) -> bool:
        return False  # its slots tell

    async def find_image(self, image: str, pull: bool) -> NodeImage | None:
        return NodeImage(f"sha256:{hashlib.sha256(image.encode()).hexdigest()}", 0, {"env": {"PATH": "/bin"}})

    async def stop_sandbox(self, sandbox_id: str) -> None:
        pass

    async def suspend_sandbox(self, sandbox_id: str) -> None:
        pass

    async def forget_memory(self, sandbox_id: str) -> None:
        pass

    async def pause_sandbox(self, sandbox_id: str) -> None:
        pass

    async def resume_sandbox(self, sandbox_id: str) -> None:
        pass

    async def snapshot_sandbox(self, sandbox_id: str, image_id: str, config: dict[str, Any] | None) -> NodeImage:
        digest = f"sha256:{hashlib.sha256(image_id.encode()).hexdigest()}"
        plain = {"env": {}, "user": "", "workdir": "/", "entrypoint": [], "command": [], "labels": {}}
        return NodeImage(digest, 1 << 20, plain if config is None else config)

    async def snapshot_directory(self, sandbox_id: str, image_id: str, path: str) -> NodeImage:
        return await self.snapshot_sandbox(sandbox_id, image_id, None)

    async def mount_image(self, sandbox_id: str, image: str, path: str) -> None:
        pass

    async def unmount_image(self, sandbox_id: str, path: str) -> None:
        pass

    async def checkpoint_sandbox(self, sandbox_id: str, image_id: str) -> NodeImage:
        return await self.snapshot_sandbox(sandbox_id, image_id, None)

    async def remove_image(self, image_id: str) -> None:
        pass

    async def expose(self, sandbox_id: str, port: int, private: bool) -> str:
        return "127.0.0.1:1"

    async def unexpose(self, sandbox_id: str, port: int) -> None:
        pass

    async def read_log(self, sandbox_id: str, fd: int, offset: int) -> tuple[int, bytes, bool]:
        main = self.mains.get(sandbox_id)
        return offset, b"" if main is None else bytes(main.streams[fd][offset:]), True

    async def sandbox_loads(self) -> list[SandboxLoad]:
        return [SandboxLoad(sandbox_id, 0.5, 64.0, 1.0, 10.0, 20.0) for sandbox_id in self.agents]

    async def usage_report(self) -> UsageReport:
        return UsageReport(1, {})

    async def confirm_usage(self, number: int) -> None:
        pass

    async def sandbox_usage(self, sandbox_id: str, since: float | None) -> SandboxUsage:
        return SandboxUsage(sandbox_id)

    # Slots

    def create(self, shape: SlotShape, node_id: str | None = None, selector: Selector = ANYWHERE) -> Slot:
        return Slot(new_slot_id(), shape, _SandboxActor(self))

    async def placed(self, slot: Slot) -> None:
        await asyncio.sleep(self.start_s)
        slot.node_id = NODE

    def kill(self, slot: Slot) -> None:
        pass

    async def rooms(self) -> dict[str, NodeRoom]:
        anywhere = _AnyRegion("eu")
        return {NODE: NodeRoom(Amount(1e6, 1 << 40, 64), Amount(1e6, 1 << 40, 64), anywhere, anywhere)}

    async def existing(self) -> list[str]:
        return []

    async def describe(self, slot_id: str) -> None:
        return None


class _AnyRegion(str):
    """Every region: a request for any is accepted. Where a region is looked up, it is the one that it is made of."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True


@dataclass(slots=True)
class _Nodes(Nodes):
    """One machine that always answers, and may be in any region. `living`: how many sandboxes live there."""

    living: Callable[[], int] = lambda: 0

    async def refresh(self, *, wait_s: float = 0.0, new_only: bool = False) -> list[str]:
        return []

    def machines(self) -> frozenset[Machine]:
        return frozenset(self.capacities().values())

    def capacities(self) -> dict[str, Machine]:
        anywhere = _AnyRegion()
        return {NODE: Machine(1e6, 1 << 40, 1e6, 1 << 40, 64, anywhere, ("runc", "runsc"), 1 << 22, anywhere)}

    def of_machine(self, machine: str) -> str | None:
        return NODE if machine == MACHINE else None

    def known(self, node_id: str) -> bool:
        return True

    def alive(self, node_id: str) -> bool:
        return True

    def handle(self, node_id: str) -> Any:
        return NODE

    def handles(self) -> list[Any]:
        return [NODE]

    def relay(self, node_id: str, otherwise: str) -> str:
        return otherwise

    def known_nodes(self) -> list[Node]:
        series = {**gateway_series(_GATEWAY), **relay_series(_RELAY)}
        return [Node(NODE, NODE, {"CPU": 8.0}, {}, "fake", info=self._info(), series=series)]  # type: ignore[arg-type]

    async def infos(self) -> list[NodeInfo]:
        return [self._info()]

    def _info(self) -> NodeInfo:
        address = "127.0.0.1:1"
        return NodeInfo(
            *(NODE, address, "fake", None, "fake", ("runc",), True, self.living(), 0, 8.0, 8.0, 8192, 8192),
            pids=1 << 22,
            disk_total=1 << 30,
        )


@dataclass
class _SandboxActor:
    """Holds one sandbox, and then the next."""

    cluster: _Cluster
    sandbox_id: str | None = None
    end: asyncio.Future[End] | None = None
    main: FakeProcess | None = None
    watch: asyncio.Task[None] | None = field(default=None)

    async def start(self, sandbox_id: str, spec: SandboxSpec, secrets: object = None) -> SandboxStarted:
        agent = self.cluster.agents[sandbox_id] = FakeAgent(self._note)
        agent.directories |= {mount.path for mount in spec.volumes}
        return self._begin(sandbox_id, spec, agent)

    async def restart(self, sandbox_id: str, spec: SandboxSpec, secrets: object = None) -> SandboxStarted:
        agent = self.cluster.agents[sandbox_id]  # with its files
        agent.begin_anew()
        return self._begin(sandbox_id, spec, agent)

    def _begin(self, sandbox_id: str, spec: SandboxSpec, agent: FakeAgent) -> SandboxStarted:
        self.main = agent.start(Start(MAIN_PROCESS, spec.command)) if spec.command else None
        self.sandbox_id, self.end = sandbox_id, asyncio.get_running_loop().create_future()
        if self.main is not None:
            self.cluster.mains[sandbox_id] = self.main
            self.watch = asyncio.create_task(self._watch(self.main, self.end, spec.persistent))
        return SandboxStarted("c-fake", NODE, "127.0.0.1:1", time.time(), warm=False, machine=MACHINE)

    async def adopt(self, sandbox_id: str, spec: SandboxSpec, started_at: float, key: str) -> SandboxStarted:
        raise NotFound("its container is gone")

    async def ended(self, sandbox_id: str) -> End:
        return await asyncio.shield(self._held(sandbox_id))

    async def terminate(self, sandbox_id: str, message: str) -> End:
        return await self.stop(sandbox_id, Reason.TERMINATED, message)

    async def stop(self, sandbox_id: str, reason: Reason, message: str) -> End:
        end, code, kept = self._held(sandbox_id), None if self.main is None else -9, reason is not Reason.TERMINATED
        if not end.done():
            end.set_result(End(reason, code, message, time.time(), kept))
        self.cluster.agents[sandbox_id].end()
        return end.result()

    async def wipe(self, sandbox_id: str) -> None:
        self.sandbox_id = self.end = self.main = None

    def _note(self, call: str, argument: Any = None) -> None:
        note = self.cluster.note()
        if note is not None:
            note(call, argument)

    def _held(self, sandbox_id: str) -> asyncio.Future[End]:
        if self.sandbox_id != sandbox_id or self.end is None:
            raise SandboxNotFound("it is not here")
        return self.end

    async def _watch(self, main: FakeProcess, end: asyncio.Future[End], kept: bool) -> None:
        while (code := main.exit) is None:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(_TICK_S)
        with suppress(asyncio.InvalidStateError):
            end.set_result(End(Reason.COMPLETED, code, f"its command ended with {code}", time.time(), kept))


def _note_error(result: asyncio.Future[Any]) -> None:
    """Nobody gets the error of a call whose caller was cancelled, and no log shall have it."""
    if not result.cancelled():
        result.exception()


def _overtaken() -> None:
    raise AssertionError("another controller has opened the store")
