"""A machine in this process: the real node actor and its real relay, over containers and a network in memory."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from shoal.actors.engines import catalogue
from shoal.actors.engines.fake import FakeEngine
from shoal.actors.messages import SlotFacts
from shoal.actors.node import prepared, unknown, wiring
from shoal.actors.node.actor import NodeActor
from shoal.actors.node.mount_sources import MountSources
from shoal.actors.node.relay import Relay
from shoal.model import tasks, telemetry
from shoal.model.errors import ShoalError, Unavailable
from shoal.model.settings import Settings
from shoal.model.spec import SlotShape

NODE_ID = "node-1"


class Net:
    """A sandbox network that remembers who is attached. While it is `broken` nobody is."""

    def __init__(self) -> None:
        self.attached: dict[str, int | Path] = {}
        self.broken = False
        self.closed: list[str] = []

    async def close_off(self, addresses: Sequence[str], *, replace: bool) -> None:
        self.closed = list(addresses) if replace else [*self.closed, *addresses]

    async def open(self) -> None:
        pass

    async def verify(self) -> bool:
        return False

    async def close(self) -> None:
        self.attached.clear()

    def resolv_conf(self) -> str:
        return ""

    async def prepare(self, key: str) -> None:
        pass

    async def make_namespace(self, pin: Path) -> None:
        await asyncio.to_thread(pin.parent.mkdir, exist_ok=True)
        await asyncio.to_thread(pin.touch, exist_ok=False)

    async def remove_namespace(self, pin: Path) -> None:
        await asyncio.to_thread(pin.unlink)

    async def attach(self, key: str, holder: int | Path, address: str | None = None) -> str:
        if self.broken:
            raise Unavailable("no more addresses")
        self.attached[key] = holder
        return f"10.0.0.{len(self.attached)}"

    async def detach(self, key: str) -> None:
        self.attached.pop(key, None)


def sources_below(top: Path) -> MountSources:
    """Directories for containers that mount nothing, without a file system of their own."""
    sources = MountSources(top)
    for directory in (sources.root, sources.links):
        directory.mkdir(parents=True, exist_ok=True)
    return sources


class Handle:
    """An actor of this process, as `shoal.actors.handles.call` takes one.

    `failures`: what the next calls of a method raise, one each.
    """

    def __init__(self, actor: object) -> None:
        self.actor = actor
        self.failures: dict[str, list[ShoalError]] = {}

    def __getattr__(self, method: str) -> _Method:
        return _Method(self, method)


@dataclass
class _Method:
    handle: Handle
    name: str

    async def remote(self, *args: Any) -> Any:
        failures = self.handle.failures.get(self.name)
        if failures:
            raise failures.pop(0)
        return await getattr(self.handle.actor, self.name)(*args)


@dataclass
class Machine:
    """`containers`, of all engines: each time that the node opens it makes a new one.

    `fault` strikes the next engine that is made. `slots`: those that live, by name.
    """

    run_dir: Path
    net: Net
    node: NodeActor = field(init=False)
    handle: Handle = field(init=False)
    engines: list[FakeEngine] = field(default_factory=list)
    relays: list[Relay] = field(default_factory=list)
    fault: Any = None
    slots: dict[str, Handle] = field(default_factory=dict)

    @property
    def engine(self) -> FakeEngine:
        return self.engines[-1]

    def make_engine(self, _settings: Settings) -> FakeEngine:
        engine = FakeEngine()
        if self.engines:
            engine.containers, engine._next_pid = self.engine.containers, self.engine._next_pid
        engine.failure, self.fault = self.fault, None
        self.engines.append(engine)
        return engine

    def make_relay(self, *args: Any, **options: Any) -> Relay:
        self.relays.append(Relay(*args, **options))
        return self.relays[-1]

    def add_slot(self, name: str, key: str | None = None) -> None:
        """A slot that lives, and has just asked for a prepared container, or knows of the one of that key."""
        facts = SlotFacts(name, SlotShape(0.125, 128), NODE_ID, None, key=key)
        self.slots[name] = Handle(SimpleNamespace(describe=partial(_told, facts)))

    async def restart(self) -> None:
        """The node actor dies; the next call opens it again."""
        parts, self.node._parts = await self.parts(), None
        await tasks.stop(*self.node._loops)
        await parts.relay.detach()

    async def parts(self) -> wiring.NodeParts:
        return await self.node._open()


async def _told(facts: SlotFacts) -> SlotFacts:
    return facts


@asynccontextmanager
async def machine(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    """Nothing of it is left afterwards."""
    top = Path(
        tempfile.mkdtemp(prefix="shoal-")
    )  # a socket's path has 107 bytes at most: not below pytest's long directories
    made = Machine(top / "run", Net())
    context = SimpleNamespace(get_node_id=lambda: NODE_ID, get_node_labels=dict)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(unknown, "find_actor", lambda name: None)
    monkeypatch.setattr(telemetry, "begin", lambda *args, **names: None)  # the log is this process's own
    monkeypatch.setattr(prepared, "find_actor", made.slots.get)
    monkeypatch.setattr(wiring, "SandboxNetwork", lambda settings, cluster: made.net)
    monkeypatch.setattr(wiring, "Relay", made.make_relay)
    monkeypatch.setitem(catalogue.ENGINES, "fake", made.make_engine)
    settings = {"engine": "fake", "state_dir": str(top / "state"), "run_dir": str(made.run_dir)}
    made.node = NodeActor(settings, "test", b"s" * 32)
    made.handle = Handle(made.node)
    try:
        yield made
    finally:
        made.net.broken = False
        await made.node.close()
        for relay in made.relays:
            await relay.close()  # waits for the process that it started, though another has stopped it
        shutil.rmtree(top)
