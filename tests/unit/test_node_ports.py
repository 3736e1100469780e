"""Exposed ports of a node: what is remembered, what comes back, and what a failure leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.actors.engines.fake import FakeEngine
from shoal.actors.node.container_spec import ContainerDefaults
from shoal.actors.node.containers import Containers
from shoal.actors.node.ports import ExposedPorts
from shoal.actors.node.records import ContainerRecord, ExposedPort, RecordFiles
from shoal.actors.node.size_files import SizeFiles
from shoal.model.errors import AlreadyExists, InvalidRequest, NotFound, QuotaExceeded, ShoalError, Unavailable
from tests.unit.builders import spec
from tests.unit.node_world import sources_below

pytestmark = pytest.mark.anyio

SHAPE = spec().container_shape


class Net:
    async def prepare(self, key: str) -> None:
        pass

    async def attach(self, key: str, pid: int, address: str | None = None) -> str:
        return "10.0.0.1"

    async def detach(self, key: str) -> None:
        pass


class Opener:
    """A relay that remembers what is open, as long as it is not restarted. `failure` is raised once."""

    def __init__(self) -> None:
        self.open: dict[tuple[str, int], tuple[bool, int]] = {}
        self.taken: set[int] = set()
        self.failure: ShoalError | None = None
        self._next = 40_000

    async def add(self, key: str, pid: int = 0, started: int = 0) -> None:
        pass

    async def remove(self, key: str) -> None:
        self.open = {k: v for k, v in self.open.items() if k[0] != key}

    async def expose(self, key: str, port: int, private: bool, listen: int, sandbox_id: str) -> str:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if listen in self.taken:
            raise AlreadyExists("taken")
        known = self.open.get((key, port))
        if known is None or known[0] != private:
            self._next += 1
            self.open[key, port] = (private, listen or (known[1] if known else self._next))
        return f"10.1.1.1:{self.open[key, port][1]}"

    async def unexpose(self, key: str, port: int) -> None:
        self.open.pop((key, port), None)

    async def exposed(self) -> list[tuple[str, int]]:
        return list(self.open)


class Node:
    def __init__(self, root: Path, opener: Opener | None = None, engine: FakeEngine | None = None) -> None:
        self.root = root
        self.opener = opener or Opener()
        self.engine = engine or FakeEngine()
        self.files = RecordFiles(root / "records")
        around = ContainerDefaults(
            root / "agent",
            sources_below(root / "run"),
            SizeFiles(root / "sizes"),
            b"s" * 32,
            {"shoal.cluster": "test"},
            {},
            (),
            root / "resolv",
            root / "empty",
        )
        self.containers = Containers(self.engine, Net(), self.opener, self.files, around, start_limit=2)
        self.ports = ExposedPorts(self.containers, self.opener)

    async def start(self) -> ContainerRecord:
        await self.engine.open()
        self.containers.records.update(await self.files.load())
        return self.containers.of_sandbox("sb-1") or await self.containers.start(SHAPE, "sb-1")

    async def remembered(self) -> list[ExposedPort]:
        return [port for record in (await self.files.load()).values() for port in record.exposed]


async def test_the_same_port_has_the_same_address(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.start()
    address = await node.ports.expose("sb-1", 80, False)
    assert await node.ports.expose("sb-1", 80, False) == address
    assert await node.ports.expose("sb-1", 80, True) == address, "the privacy changes, not the address"
    listen = int(address.rpartition(":")[2])
    assert await node.remembered() == [ExposedPort(80, True, listen)]
    with pytest.raises(AlreadyExists) as caught:
        await node.ports.expose("sb-1", 80, True, 9000)
    assert caught.value.field == "listen"
    await node.ports.unexpose("sb-1", 80)
    await node.ports.unexpose("sb-1", 80)
    assert await node.remembered() == []
    assert node.opener.open == {}


async def test_a_restarted_relay_opens_the_same(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = await node.start()
    await node.ports.expose("sb-1", 80, False)
    await node.ports.expose("sb-1", 81, True, 9000)
    before = dict(node.opener.open)
    node.opener.open = {}
    await node.ports.restore()
    assert node.opener.open == before
    node.opener.open = {}
    node.opener.taken.add(9000)
    await node.ports.restore()
    assert node.opener.open[record.key, 81][1] != 9000, "another, where that one is taken"
    assert sorted(node.opener.open) == sorted(before)


async def test_a_restarted_node_knows_them_and_closes_what_it_does_not_know(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = await node.start()
    address = await node.ports.expose("sb-1", 80, False)
    node.opener.open["c-stranger", 1] = (False, 1)
    again = Node(tmp_path, node.opener, node.engine)
    await again.start()
    await again.ports.restore()
    assert list(node.opener.open) == [(record.key, 80)]
    assert await again.ports.expose("sb-1", 80, False) == address


async def test_what_fails_is_not_remembered(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.start()
    for failure in (QuotaExceeded("64 ports"), Unavailable("restarting"), AlreadyExists("taken")):
        node.opener.failure = failure
        with pytest.raises(type(failure)):
            await node.ports.expose("sb-1", 80, False)
        assert await node.remembered() == []
    with pytest.raises(NotFound):
        await node.ports.expose("sb-2", 80, False)
    for port, listen in ((0, 0), (65536, 0), (80, 22), (80, 65536)):
        with pytest.raises(InvalidRequest):
            await node.ports.expose("sb-1", port, False, listen)


async def test_a_restore_that_a_dying_relay_cuts_short_says_so(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.start()
    await node.ports.expose("sb-1", 80, False)
    node.opener.open = {}
    node.opener.failure = Unavailable("went away")
    with pytest.raises(Unavailable):
        await node.ports.restore()
    await node.ports.restore()
    assert len(node.opener.open) == 1


async def test_a_removed_container_takes_its_ports_with_it(tmp_path: Path) -> None:
    node = Node(tmp_path)
    record = await node.start()
    await node.ports.expose("sb-1", 80, False)
    await node.containers.remove(record.key)
    assert node.opener.open == {}
    assert list((tmp_path / "records").iterdir()) == []
    with pytest.raises(NotFound):
        await node.ports.expose("sb-1", 80, False)
    await node.ports.unexpose("sb-1", 80)
    with pytest.raises(NotFound):
        await node.containers.note(record.key, exposed=())
    assert list((tmp_path / "records").iterdir()) == [], "nothing brings a removed record back"
