"""When disks are looked at, and what is told of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.actors.engines.contract import ContainerSpec
from shoal.actors.engines.fake import EngineDown, FakeEngine
from shoal.actors.node import disk_watch
from shoal.actors.node.disk_watch import DiskWatch, Schedule
from shoal.model import ids

pytestmark = pytest.mark.anyio

MiB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A watch over a fake engine, with time in the test's hands."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.engine = FakeEngine(clock=self.clock)
        self.told: list[tuple[str, int]] = []
        self.watch = DiskWatch(self.engine, 1.0, lambda key, used: self.told.append((key, used)), clock=self.clock)

    async def container(self, limit: int = 10 * MiB) -> str:
        key = ids.new_container_key()
        spec = ContainerSpec(key, "shoal/base", Path("/agent"), Path("/run"), cpu=1, memory=0, pids=64)
        await self.engine.start(spec)
        self.watch.add(key, limit)
        return key

    @property
    def looks(self) -> int:
        return len(self.engine.called("disk_usage"))


@pytest.fixture
async def bench(anyio_backend: str) -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.engine.open()
    yield bench
    await bench.engine.close()


async def test_one_over_its_limit_is_told_once(bench: Bench) -> None:
    key, other = await bench.container(), await bench.container()
    await bench.watch.step()
    assert bench.told == []
    bench.engine.containers[key].written = 10 * MiB + 1
    bench.engine.containers[other].written = 10 * MiB
    bench.clock.now += 1
    await bench.watch.step()
    assert bench.told == [(key, 10 * MiB + 1)]
    bench.clock.now += 100
    await bench.watch.step()
    assert len(bench.told) == 1
    assert [call.args[0] for call in bench.engine.called("disk_usage")][-1] == other


async def test_looks_keep_their_interval(bench: Bench) -> None:
    await bench.container()
    for later, looks in ((0.0, 1), (0.5, 1), (0.4, 1), (0.1, 2), (5.0, 3)):
        bench.clock.now += later
        await bench.watch.step()
        assert bench.looks == looks


async def test_one_without_a_limit_is_not_watched(bench: Bench) -> None:
    await bench.container(limit=0)
    await bench.watch.step()
    assert bench.looks == 0


async def test_one_that_is_removed_is_forgotten(bench: Bench) -> None:
    key, gone = await bench.container(), await bench.container()
    bench.watch.remove(key)
    bench.watch.remove("c-none")
    await bench.engine.remove(gone)
    await bench.watch.step()
    bench.clock.now += 10
    await bench.watch.step()
    assert [call.args[0] for call in bench.engine.called("disk_usage")] == [gone]


async def test_an_engine_that_is_down_is_asked_again(bench: Bench) -> None:
    key = await bench.container()
    bench.engine.containers[key].written = 11 * MiB
    bench.engine.inject(EngineDown("disk_usage"))
    await bench.watch.step()
    assert bench.told == []
    bench.clock.now += 1
    await bench.watch.step()
    assert bench.told == [(key, 11 * MiB)]


async def test_running_it_notices_what_is_added_and_can_be_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for rest in ("ONE_TREE", "ALL_TREES"):  # a look in which the machine stood still would be followed by a long one
        monkeypatch.setattr(disk_watch, rest, 0)
    engine, told = FakeEngine(), asyncio.Queue[str]()
    await engine.open()
    watch = DiskWatch(engine, 0.01, lambda key, _: told.put_nowait(key))
    for key in ("c-one", "c-two"):
        running = asyncio.create_task(watch.run())
        await asyncio.sleep(0.01)
        await engine.start(ContainerSpec(key, "shoal/base", Path("/a"), Path("/r"), cpu=1, memory=0, pids=64))
        watch.add(key, MiB)
        await asyncio.sleep(0.03)
        engine.containers[key].written = 2 * MiB
        assert await asyncio.wait_for(told.get(), 20) == key  # a machine may stand still for seconds
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def due(schedule: Schedule, now: float) -> list[str]:
    return [look.key for look in schedule.begin(now)]


def test_what_takes_long_to_count_is_looked_at_less_often() -> None:
    schedule = Schedule(1.0)
    schedule.add("large", MiB, 0.0)
    assert due(schedule, 0.0) == ["large"]
    assert due(schedule, 100.0) == []  # the look is under way
    assert not schedule.end("large", 5, 0.0, 0.5)
    assert schedule.wait(0.5) == pytest.approx(10.0)
    assert due(schedule, 10.4) == []
    assert due(schedule, 10.5) == ["large"]


def test_many_trees_together_have_a_bound() -> None:
    schedule = Schedule(1.0)
    for number in range(100):
        schedule.add(f"k{number}", MiB, 0.0)
    for key in due(schedule, 0.0):
        schedule.end(key, 5, 0.0, 0.1)
    # 100 trees at 0.1 s each: ten seconds of work in forty.
    assert due(schedule, 40.0) == []
    assert len(due(schedule, 40.2)) == 100


def test_a_slow_tree_does_not_stretch_the_interval_of_another() -> None:
    schedule = Schedule(1.0)
    for key in ("slow", "quick"):
        schedule.add(key, MiB, 0.0)
    assert [look.slow for look in schedule.begin(0.0)] == [False, False]
    schedule.end("slow", 5, 0.0, 60.0)
    schedule.end("quick", 5, 60.0, 60.001)
    for now in (61.1, 62.2, 63.3):
        assert due(schedule, now) == ["quick"]
        schedule.end("quick", 5, now, now + 0.001)
    assert [look.slow for look in schedule.begin(60.0 + 60.0 * 20)] == [False, True]


class OneSlowTree(FakeEngine):
    """Counting the tree of `slow` waits for `counted`."""

    slow = ""

    def __init__(self) -> None:
        super().__init__()
        self.counting, self.counted = asyncio.Event(), asyncio.Event()

    async def disk_usage(self, key: str, *, limit: int) -> int:
        if key == self.slow:
            self.counting.set()
            await self.counted.wait()
        return await super().disk_usage(key, limit=limit)


async def test_a_slow_tree_is_counted_beside_the_others(bench: Bench) -> None:
    engine = OneSlowTree()
    await engine.open()
    bench.engine, bench.watch._engine = engine, engine
    engine.slow, quick = await bench.container(), await bench.container()
    first = asyncio.create_task(bench.watch.step())
    await engine.counting.wait()
    bench.clock.now += 60
    engine.counted.set()
    await first
    engine.counted.clear()
    bench.clock.now += 60 * 20
    engine.containers[quick].written = 11 * MiB
    second = asyncio.create_task(bench.watch.step())
    async with asyncio.timeout(10):
        while not bench.told:  # noqa: ASYNC110 - though the other one is still being counted
            await asyncio.sleep(0.01)
    engine.counted.set()
    await second
    assert bench.told == [(quick, 11 * MiB)]


def test_a_failed_look_tells_nothing() -> None:
    schedule = Schedule(1.0)
    schedule.add("k", 0, 0.0)
    due(schedule, 0.0)
    assert not schedule.end("k", None, 0.0, 0.0)
    assert schedule.wait(0.0) == 1.0
    schedule.remove("k")
    assert schedule.wait(0.0) is None
    assert not schedule.end("k", 5, 0.0, 0.0)
