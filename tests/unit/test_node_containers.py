"""The node's containers over the in-memory engine: what fails leaves nothing, what was lost is told, what a crash left
is swept.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.actors.engines.contract import Ability, ContainerSpec
from shoal.actors.engines.fake import EngineBroken, EngineRefuses, EngineStuck, FakeEngine
from shoal.actors.engines.kernel_files import start_of
from shoal.actors.node.container_spec import ContainerDefaults
from shoal.actors.node.containers import Containers
from shoal.actors.node.logs import KEEP, LogFiles
from shoal.actors.node.records import ContainerRecord, RecordFiles, Stage
from shoal.actors.node.size_files import SizeFiles
from shoal.model.errors import Internal, NotFound, QuotaExceeded, Unavailable
from shoal.model.mounts import MountSpec
from shoal.model.spec import ContainerShape
from shoal.model.states import Reason
from tests.unit.builders import spec
from tests.unit.node_world import Net, sources_below

pytestmark = pytest.mark.anyio

SHAPE = spec().container_shape
LABELS = {"shoal.cluster": "test"}


class FakeRelay:
    """A relay that remembers whom it listens for. While it is `down` it does not answer."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.first: dict[str, tuple[int, int]] = {}
        self.down = False
        self.refuses = False

    async def add(self, key: str, pid: int = 0, started: int = 0) -> None:
        self._answer()
        if self.refuses:
            raise Internal("the node's relay refused add: no such file or directory")
        self.open.add(key)
        if pid:
            self.first[key] = (pid, started)

    async def remove(self, key: str) -> None:
        self._answer()
        self.open.discard(key)

    def _answer(self) -> None:
        if self.down:
            raise Unavailable("the node's relay is being restarted; try again")


class Node:
    """Containers with all their surroundings below one directory."""

    def __init__(self, root: Path, engine: FakeEngine | None = None) -> None:
        self.root = root
        self.engine = engine or FakeEngine()
        self.net = Net()
        self.relay = FakeRelay()
        self.files = RecordFiles(root / "records")
        around = ContainerDefaults(
            agent=root / "agent",
            sources=sources_below(root / "run"),
            sizes=SizeFiles(root / "sizes"),
            secret=b"s" * 32,
            labels=LABELS,
            env={},
            mounts=(),
            resolv_conf=root / "resolv",
            empty_resolv_conf=root / "empty",
        )
        self.containers = Containers(self.engine, self.net, self.relay, self.files, around, start_limit=2)

    async def open(self) -> Node:
        await self.engine.open()
        self.containers.records.update(await self.files.load())
        return self

    def assert_empty(self) -> None:
        assert self.engine.containers == {}
        assert self.net.attached == {}
        assert self.relay.open == set()
        assert self.containers.records == {}
        assert list((self.root / "records").iterdir()) == []
        assert [path for path in (self.root / "run").rglob("*") if path.name not in ("c", "mounted")] == []


async def test_starts_and_removes_without_a_trace(tmp_path: Path) -> None:
    node = await Node(tmp_path).open()
    record = await node.containers.start(SHAPE, "sb-1")
    assert record.ready
    assert record.pid == node.net.attached[record.key]
    assert (await node.files.load())[record.key] == record
    assert node.containers.of_sandbox("sb-1") == record
    await asyncio.gather(node.containers.remove(record.key), node.containers.remove(record.key))
    node.assert_empty()
    assert len(node.engine.called("remove")) == 1, "two callers share one removal"


async def test_the_relay_is_told_which_process_is_the_first(tmp_path: Path) -> None:
    node = await Node(tmp_path).open()
    node.engine._next_pid = os.getpid() - 1  # a process that there is
    record = await node.containers.start(SHAPE, "sb-1")
    first = (os.getpid(), start_of(os.getpid()))
    assert first[1] > 0
    assert node.relay.first == {record.key: first}
    again = await Node(tmp_path, node.engine).open()
    await again.containers.identify_all()
    assert again.relay.first == {record.key: first}, "after a restart, from the record"
    again.relay.first.clear()
    again.relay.refuses = True
    await again.containers.identify_all()  # which must not keep a node from opening
    again.relay.refuses = False
    again.containers.records[record.key] = record.but(shape=replace(SHAPE, runtime="runsc"))
    await again.containers.identify_all()
    assert again.relay.first == {}, "which no process of this node's can be"
    again.containers.records[record.key] = record
    node.engine.containers.clear()
    await again.containers.reconcile()
    await again.containers.identify_all()
    assert again.relay.first == {}, "the container is gone, and so is the directory that the relay would look for"


async def test_a_runtime_with_a_kernel_of_its_own_finds_its_network_when_it_starts(tmp_path: Path) -> None:
    node = await Node(tmp_path).open()
    node.engine.runtimes = ("runc", "runsc")
    shape = spec(runtime="runsc", persistent=True, timeout=None).container_shape
    record = await node.containers.start(shape, "sb-1")
    (started,) = node.engine.called("start")
    pin = node.net.attached[record.key]
    assert isinstance(pin, Path)
    assert started.args[0].namespace == pin
    assert record.ip is not None
    assert pin.exists()
    await node.containers.stop(record.key)
    assert not pin.exists(), "its addresses are gone from it"
    await node.containers.restart(record.key)
    assert node.net.attached == {record.key: pin}
    await node.containers.remove(record.key)
    (node.root / "run" / "n").rmdir()
    node.assert_empty()


async def test_a_network_of_none_is_not_attached(tmp_path: Path) -> None:
    node = await Node(tmp_path).open()
    await node.containers.start(spec(network="none").container_shape, "sb-1")
    assert node.net.attached == {}


@pytest.mark.parametrize("failure", [EngineBroken("start"), EngineRefuses("start", QuotaExceeded("full"))])
async def test_a_start_that_fails_leaves_nothing(tmp_path: Path, failure: EngineBroken | EngineRefuses) -> None:
    node = await Node(tmp_path).open()
    node.engine.inject(failure)
    with pytest.raises((Internal, QuotaExceeded)):
        await node.containers.start(SHAPE, "sb-1")
    node.assert_empty()


async def test_a_network_that_fails_leaves_nothing(tmp_path: Path) -> None:
    node = await Node(tmp_path).open()
    node.net.broken = True
    with pytest.raises(Unavailable):
        await node.containers.start(SHAPE, "sb-1")
    node.assert_empty()


async def test_what_was_kept_ready_and_cannot_mount_what_its_sandbox_wants_is_gone(tmp_path: Path) -> None:
    class NothingThere:
        async def attach(self, record: ContainerRecord) -> None:
            raise NotFound("there is no such bucket")

    node = await Node(tmp_path).open()
    node.containers.mounts = NothingThere()
    record = await node.containers.start(SHAPE, None, "slot-1")
    with pytest.raises(NotFound):
        await node.containers.assign(record.key, "sb-1", (MountSpec("/data", volume="vol-1"),))
    assert node.containers.serving("sb-1") is None
    node.assert_empty()


async def test_what_a_start_could_not_undo_a_sweep_removes(tmp_path: Path) -> None:
    node = await Node(tmp_path).open()
    node.net.broken = True
    node.engine.inject(EngineBroken("remove"))
    with pytest.raises(Unavailable, match="no more addresses"):
        await node.containers.start(SHAPE, "sb-1")
    assert len(node.engine.containers) == 1
    node.relay.down = True
    with pytest.raises(Unavailable):
        await node.containers.start(SHAPE, "sb-2")
    node.relay.down = False
    await node.containers.reconcile()
    node.assert_empty()


async def test_a_removal_that_failed_is_made_by_the_next_sweep_that_can(tmp_path: Path) -> None:
    node = await Node(tmp_path).open()
    kept = await node.containers.start(SHAPE, "sb-1")
    warm = await node.containers.start(SHAPE, None)
    other = await node.containers.start(SHAPE, "sb-2")
    node.relay.down = True
    for record in (warm, other):
        with pytest.raises(Unavailable):
            await node.containers.remove(record.key)
    assert node.containers.serving("sb-2") is None, "what is half removed is nobody's any more"
    await node.containers.reconcile()
    assert set(node.containers.records) == {kept.key, warm.key, other.key}
    node.relay.down = False
    await node.containers.reconcile()
    assert set(node.containers.records) == set(node.engine.containers) == node.relay.open == {kept.key}
    assert node.containers.serving("sb-1") == kept
    await node.containers.remove(kept.key)
    node.assert_empty()


async def test_a_restart_goes_on_though_what_was_half_made_cannot_be_removed_yet(tmp_path: Path) -> None:
    before = await Node(tmp_path).open()
    half = await before.containers.start(SHAPE, "sb-1")
    await before.files.put(half.but(stage=Stage.MAKING))
    after = await Node(tmp_path, before.engine).open()
    after.relay.down = True
    await after.containers.forget_unfinished()
    after.relay.down = False
    await after.containers.reconcile()
    assert after.containers.records == after.engine.containers == {}


async def test_starts_at_once_are_bounded(tmp_path: Path) -> None:
    most = now = 0
    two = asyncio.Event()

    class Slow(FakeEngine):
        async def start(self, spec: ContainerSpec):  # type: ignore[no-untyped-def]
            nonlocal most, now
            now += 1
            most = max(most, now)
            if now == 2:
                two.set()
            await asyncio.wait_for(two.wait(), 20)  # however long the other takes to come so far
            await asyncio.sleep(0.01)  # and so long a third could come
            now -= 1
            return await super().start(spec)

    node = await Node(tmp_path, Slow()).open()
    await asyncio.gather(*(node.containers.start(SHAPE, f"sb-{n}") for n in range(8)))
    assert most == 2


async def test_losses_are_told_with_their_reason(tmp_path: Path) -> None:
    node = await Node(tmp_path).open()
    follower = asyncio.create_task(node.containers.follow_events())
    await asyncio.sleep(0.01)
    killed = await node.containers.start(SHAPE, "sb-1")
    hungry = await node.containers.start(SHAPE, "sb-2")
    watches = [asyncio.create_task(node.containers.losses.watch(r.key)) for r in (killed, hungry)]
    await asyncio.sleep(0.01)
    node.engine.end(killed.key)
    node.engine.end(hungry.key, out_of_memory=True)
    losses = await asyncio.wait_for(asyncio.gather(*watches), 20)  # a machine may stand still for seconds
    assert [loss.reason for loss in losses] == [Reason.EVICTED, Reason.OUT_OF_MEMORY]
    assert losses[1].exit_code == 137
    assert "1024 MiB" in losses[1].message
    follower.cancel()


async def test_a_restart_finds_what_ran_and_sweeps_what_was_half_made(tmp_path: Path) -> None:
    before = await Node(tmp_path).open()
    kept = await before.containers.start(SHAPE, "sb-1")
    half = await before.containers.start(SHAPE, "sb-2")
    await before.files.put(half.but(stage=Stage.MAKING))
    unknown = await before.containers.start(SHAPE, "sb-3")
    before.files.drop(unknown.key)
    gone = await before.containers.start(SHAPE, "sb-4")
    del before.engine.containers[gone.key]

    after = await Node(tmp_path, before.engine).open()
    await after.containers.forget_unfinished()
    await after.containers.reconcile()
    assert set(after.engine.containers) == {kept.key}
    loss = await asyncio.wait_for(after.containers.losses.watch(gone.key), 20)  # a machine may stand still for seconds
    assert loss.reason is Reason.EVICTED
    assert after.containers.of_sandbox("sb-1") == kept


async def test_a_sweep_leaves_alone_what_is_being_made(tmp_path: Path) -> None:
    node = await Node(tmp_path, FakeEngine(delay=0.005)).open()
    starts = [asyncio.create_task(node.containers.start(SHAPE, f"sb-{n}")) for n in range(6)]
    while not all(s.done() for s in starts):
        await node.containers.reconcile()
    for start in starts:
        key = start.result().key
        assert key in node.engine.containers
        assert node.containers.losses.of(key) is None


async def test_rubbish_among_the_records_is_removed(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path)
    await files.load()
    for name, text in (("c-1.json", "{"), ("../x.json", "{}"), ("c-2.tmp", "{}"), ("c-3.json", '{"key": 1}')):
        (tmp_path / Path(name).name).write_text(text)
    assert await files.load() == {}
    assert sorted(p.name for p in tmp_path.iterdir()) == []  # noqa: ASYNC240 - a test's own directory


def test_a_log_keeps_the_end_and_its_offset(tmp_path: Path) -> None:
    logs = LogFiles(tmp_path / "logs")
    data = bytes(range(256)) * (KEEP // 256) + b"the end"
    logs.save("sb-1", 1, 100, data)
    read, offset, end = bytearray(), 0, False
    first: int | None = None
    while not end:
        at, chunk, end = logs.read("sb-1", 1, offset)
        first = at if first is None else first
        read += chunk
        offset = at + len(chunk)
    assert first == 100 + len(data) - KEEP
    assert bytes(read) == data[-KEEP:]
    assert logs.read("sb-1", 2, 7) == (7, b"", True)
    with pytest.raises(ValueError, match="no log"):
        logs.read("../etc/passwd", 1, 0)
    logs.sweep(max_age=0, now=4e9)
    assert list((tmp_path / "logs").iterdir()) == []


def test_of_too_many_logs_the_newest_are_kept(tmp_path: Path) -> None:
    logs = LogFiles(tmp_path / "logs", keep_all=3_500)
    for number in range(5):
        logs.save(f"sb-{number}", 1, 0, b"x" * 1_000)
        os.utime(tmp_path / "logs" / f"sb-{number}.1", (number, number))
    logs.sweep(max_age=100, now=10)
    assert sorted(file.name for file in (tmp_path / "logs").iterdir()) == ["sb-2.1", "sb-3.1", "sb-4.1"]


def test_shapes_differ_by_all_that_is_fixed_at_a_start() -> None:
    assert set(ContainerShape.__slots__) == {
        "image",
        "cpu",
        "memory",
        "disk",
        "pids",
        "gpu",
        "network",
        "runtime",
        "hostname",
        "persistent",
        "memory_directories",
    }


@pytest.mark.parametrize("failure", [EngineBroken("remove"), EngineStuck("remove")])
async def test_an_end_does_not_wait_for_the_files_of_what_has_ended(
    tmp_path: Path, failure: EngineBroken | EngineStuck
) -> None:
    node = await Node(tmp_path).open()
    node.containers.patience_s = 0.05
    record = await node.containers.start(SHAPE, "sb-1")
    node.engine.inject(failure)
    node.engine.end(record.key)
    async with asyncio.timeout(10):
        await node.containers.end(record.key)
    assert node.containers.remains == {record.key}
    assert node.containers.serving("sb-1") is None
    if isinstance(failure, EngineStuck):
        failure.let_go.set()
    await node.containers.reconcile()
    node.assert_empty()
    assert node.containers.remains == set()


async def test_an_end_waits_for_no_more_than_the_kill_where_the_engine_has_one(tmp_path: Path) -> None:
    node = await Node(tmp_path).open()
    node.engine.abilities |= {Ability.KILL}
    node.containers.patience_s = 0.05
    record = await node.containers.start(SHAPE, "sb-1")
    node.engine.inject(stuck := EngineStuck("remove"))
    async with asyncio.timeout(10):
        await node.containers.end(record.key)
    assert node.containers.serving("sb-1") is None
    await stuck.reached.wait()
    await node.containers.reconcile()
    assert node.containers.losses.of(record.key) is None, "nobody takes it for lost"
    stuck.let_go.set()
    await node.containers.remove(record.key)
    node.assert_empty()


async def test_an_end_waits_while_something_runs(tmp_path: Path) -> None:
    node = await Node(tmp_path).open()
    node.containers.patience_s = 0.05
    record = await node.containers.start(SHAPE, "sb-1")
    node.engine.inject(EngineBroken("remove"))
    with pytest.raises(Internal):
        await node.containers.end(record.key)
    node.engine.inject(stuck := EngineStuck("remove"))
    ending = asyncio.create_task(node.containers.end(record.key))
    await stuck.reached.wait()
    await asyncio.sleep(0.2)
    assert not ending.done()
    stuck.let_go.set()
    await ending
    await node.containers.reconcile()
    node.assert_empty()


async def test_one_removal_that_hangs_does_not_hold_up_the_sweep(tmp_path: Path) -> None:
    node = await Node(tmp_path).open()
    node.containers.patience_s = 0.5
    records = [await node.containers.start(SHAPE, None) for _ in range(2)]
    node.relay.down = True
    for record in records:
        await node.containers.discard(record.key)
    node.relay.down = False
    node.engine.inject(stuck := EngineStuck("remove"))
    await asyncio.wait_for(node.containers.reconcile(), 10)
    assert len(node.containers.records) == 1
    stuck.let_go.set()
    node.containers.patience_s = 10.0
    await node.containers.reconcile()
    node.assert_empty()
