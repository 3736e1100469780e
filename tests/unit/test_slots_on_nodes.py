"""The pool of slots over nodes in regions: who gets room, what waits for which region, and what is told of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from shoal.actors.controller import slots as slots_module
from shoal.actors.controller.idle_slots import IdleSlots
from shoal.actors.controller.machine import Machine
from shoal.actors.controller.placement import ANYWHERE, Request, Selector
from shoal.actors.controller.room import Amount, NodeRoom
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.slot_demand import MAX_UNPLACED
from shoal.actors.controller.slot_stock import SlotStock
from shoal.actors.controller.slots import SlotPool
from shoal.model.capacity import Capacity, NodeType
from shoal.model.errors import DeadlineExceeded, NoCapacity
from shoal.model.settings import PoolSettings
from shoal.model.spec import SlotShape
from tests.unit.controller_world import steps

pytestmark = pytest.mark.anyio

ONE = SlotShape(1.0, 1024)
ANY = Request(ONE)
EU = Request(ONE, regions=("eu",))
EU_US = Request(ONE, regions=("eu", "us"))
TYPES = tuple(NodeType(region, 4, 4096, region=region, max=5) for region in ("eu", "us"))


@dataclass
class Cluster:
    """Nodes of 4 cores by name and region. It is Ray: a slot comes up where there is room, first those that were asked
    for first."""

    nodes: dict[str, str]
    cordons: dict[str, str] = field(default_factory=dict)
    live: dict[str, Slot] = field(default_factory=dict)
    waiting: dict[str, tuple[Slot, Selector]] = field(default_factory=dict)
    now: float = 100.0
    pool: SlotPool = field(init=False)

    def __post_init__(self) -> None:
        stock = SlotStock(self, self, clock=lambda: self.now, wall_clock=lambda: self.now)
        self.pool = SlotPool(stock, IdleSlots(PoolSettings(idle_slots=0), ONE))

    def report(self, **changes: object) -> None:
        self.pool.stock.launchable.report(Capacity(TYPES, **changes))  # type: ignore[arg-type]

    async def turn(self) -> None:
        self.now += 1
        await self.pool.tend()
        await steps(100)

    def free(self, node: str) -> int:
        return 4 - sum(slot.node_id == node for slot in self.live.values())

    def capacities(self) -> dict[str, Machine]:
        return {name: Machine(4, 4096, 4, 4096, 0, region, ("runc",), 1024) for name, region in self.nodes.items()}

    def cordoned(self) -> dict[str, str]:
        return self.cordons

    def create(self, shape: SlotShape, node_id: str | None = None, selector: Selector = ANYWHERE) -> Slot:
        slot = Slot(f"slot-{len(self.live) + len(self.waiting)}-{self.now}-{id(object())}", shape, None)
        slot.asked = node_id
        self.waiting[slot.id] = (slot, selector)
        return slot

    async def placed(self, slot: Slot) -> None:
        while True:
            for other, selector in list(self.waiting.values()):
                nodes = [other.asked] if other.asked else [name for name in self.nodes if self.allows(selector, name)]
                node = next((name for name in nodes if self.free(name) > 0), None)
                if node is not None:
                    other.node_id = node
                    self.live[other.id] = other
                    del self.waiting[other.id]
            if slot.id in self.live:
                return
            await asyncio.sleep(0.001)

    def allows(self, selector: Selector, name: str) -> bool:
        return name not in selector.not_nodes and (not selector.regions or self.nodes[name] in selector.regions)

    def kill(self, slot: Slot) -> None:
        self.live.pop(slot.id, None)
        self.waiting.pop(slot.id, None)

    async def rooms(self) -> dict[str, NodeRoom]:
        return {
            name: NodeRoom(Amount(4, 4096), Amount(self.free(name), 1024 * self.free(name)), region)
            for name, region in self.nodes.items()
        }

    async def take(self, request: Request = ANY, environment: str = "main", count: int = 1) -> list[Slot]:
        await self.pool.refresh()
        return await asyncio.gather(*(self.pool.take(request, environment, 5) for _ in range(count)))

    def begin(self, request: Request = ANY, environment: str = "main", deadline_s: float = 30) -> asyncio.Task[Slot]:
        return asyncio.create_task(self.pool.take(request, environment, deadline_s))


async def test_packing_leaves_nodes_empty_and_spreading_does_not() -> None:
    packed = Cluster({"a": "eu", "b": "eu", "c": "eu"})
    assert Counter(slot.node_id for slot in await packed.take(count=5)) == {"a": 4, "b": 1}
    spread = Cluster({"a": "eu", "b": "eu", "c": "eu"})
    taken = []
    for _ in range(6):
        taken += await spread.take(Request(ONE, spread=True))
    assert Counter(slot.node_id for slot in taken) == {"a": 2, "b": 2, "c": 2}


@dataclass
class SlowCluster(Cluster):
    """Its slots come up one at a time, when `start` says so. Eight may start on a node."""

    starts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    def capacities(self) -> dict[str, Machine]:
        return {name: replace(machine, cores=8) for name, machine in super().capacities().items()}

    async def placed(self, slot: Slot) -> None:
        await self.starts.acquire()
        slot.node_id = slot.asked
        self.live[slot.id] = slot
        del self.waiting[slot.id]

    def starting(self) -> Counter[str | None]:
        return Counter(slot.asked for slot, _ in self.waiting.values())


async def test_a_node_starts_a_few_slots_at_once_and_the_rest_have_room_and_wait_their_turn() -> None:
    small = SlotShape(0.1, 64)
    cluster = SlowCluster({"a": "eu"})
    await cluster.pool.refresh()
    takes = [cluster.begin(Request(small)) for _ in range(12)]
    impatient = cluster.begin(Request(small, patient=False))
    await steps(100)
    assert cluster.starting() == {"a": 8}  # one for each core
    assert not impatient.done()
    assert [each.count for each in cluster.pool.waiting()] == []  # no machine need be launched for them
    cluster.starts.release()
    await steps(100)
    assert cluster.starting() == {"a": 7}  # a sandbox is about to start in the eighth
    (came_up,) = (take.result() for take in (*takes, impatient) if take.done())
    cluster.pool.settled(came_up)
    assert cluster.starting() == {"a": 8}
    for take in (*takes, impatient):
        take.cancel()
    await asyncio.gather(*takes, impatient, return_exceptions=True)
    assert cluster.starting() == {}


async def test_who_has_no_room_in_the_preferred_region_does_not_wait_until_no_more_starts_there() -> None:
    small = SlotShape(0.1, 64)
    cluster = SlowCluster({"a": "eu", "b": "us"})
    await cluster.pool.refresh()
    takes = [cluster.begin(Request(small, regions=("eu", "us"))) for _ in range(40)]
    await steps(100)
    assert cluster.starting() == {"a": 8}  # all have room there
    takes += [cluster.begin(Request(small, regions=("eu", "us"))) for _ in range(40)]
    await steps(100)
    assert cluster.starting() == {"a": 8, "b": 8}
    for take in takes:
        take.cancel()
    await asyncio.gather(*takes, return_exceptions=True)
    assert cluster.starting() == {}


async def test_a_slot_that_comes_free_is_waited_for_where_sandboxes_come_and_go() -> None:
    small = SlotShape(0.1, 64)
    cluster = SlowCluster({"a": "eu"})
    await cluster.pool.refresh()
    for _ in range(8):
        cluster.starts.release()
    taken = await cluster.take(Request(small), count=8)
    waiting = [cluster.begin(Request(small)) for _ in range(3)]
    await steps(100)
    assert cluster.starting() == {}  # eight sandboxes are about to start on eight cores
    cluster.pool.put(taken[0])
    assert await waiting[0] is taken[0]
    cluster.pool.settled(taken[1])
    cluster.pool.stock.leaving(taken[1])
    cluster.pool.settled(taken[2])
    assert cluster.starting() == {"a": 1}
    cluster.now += 60  # those that take so long are no work for the node's cores
    cluster.pool.settled(taken[3])
    assert cluster.starting() == {"a": 2}  # one for each that waits
    for take in waiting:
        take.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_what_comes_free_for_others_is_not_waited_for() -> None:
    cluster = SlowCluster({"a": "eu"})
    await cluster.pool.refresh()
    for _ in range(8):
        cluster.starts.release()
    taken = await cluster.take(Request(SlotShape(0.1, 64)), count=8)
    same, other = cluster.begin(Request(SlotShape(0.1, 64))), cluster.begin(Request(SlotShape(0.1, 128)))
    await steps(100)
    cluster.now += 0.9
    cluster.pool.put(taken[0])
    assert await same is taken[0]
    again = cluster.begin(Request(SlotShape(0.1, 64)))
    await steps(100)
    assert cluster.starting() == {}
    cluster.now += 0.2
    waiting = [other, again, *(cluster.begin(Request(SlotShape(0.1, memory))) for memory in (64, 128))]
    await steps(100)
    assert [slot.shape.memory for slot, _ in cluster.waiting.values()] == [128, 128]
    for take in waiting:
        take.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_another_node_starts_what_one_has_no_turn_for() -> None:
    cluster = SlowCluster({"a": "eu", "b": "eu"})
    await cluster.pool.refresh()
    takes = [cluster.begin(Request(SlotShape(0.1, 64))) for _ in range(10)]
    await steps(100)
    assert sorted(cluster.starting().values()) == [2, 8]
    for take in takes:
        take.cancel()
    await asyncio.gather(*takes, return_exceptions=True)


async def test_an_idle_slot_serves_whatever_may_run_on_its_node() -> None:
    cluster = Cluster({"a": "us", "b": "eu"})
    (slot,) = await cluster.take(Request(ONE, regions=("us",)))
    cluster.pool.put(slot)
    (other,) = await cluster.take(EU)
    assert other.node_id == "b"
    assert await cluster.take(ANY) == [slot]
    cluster.pool.put(slot)
    assert (await cluster.take(EU_US))[0].node_id == "b", "the preferred region has room"


async def test_what_waits_follows_the_regions_that_have_capacity_and_says_why() -> None:
    cluster = Cluster({"u": "us"})
    cluster.report()
    others = await cluster.take(count=4)
    waiting = cluster.begin(EU_US)
    await steps(20)
    assert [selector.regions for _, selector in cluster.waiting.values()] == [("eu",)]
    reason = cluster.pool.reason(EU_US)
    assert reason is not None
    cluster.report(launching={"eu": 1})
    await cluster.turn()
    assert cluster.pool.reason(EU_US) not in (None, reason), "it is kept current"
    assert not waiting.done()
    cluster.report(exhausted={"eu": cluster.now + 60})
    await cluster.turn()
    assert [selector.regions for _, selector in cluster.waiting.values()] == [("us",)]
    cluster.report(launching={"eu": 1})
    cluster.pool.put(others.pop())
    assert (await waiting).node_id == "u", "what is free now goes before what may come"
    assert cluster.waiting == {}
    assert cluster.pool.reason(EU_US) is None


async def test_a_node_that_comes_serves_those_that_wait() -> None:
    cluster = Cluster({})
    cluster.report()
    waiting = [cluster.begin(EU) for _ in range(6)]
    await steps(20)
    cluster.nodes = {"a": "eu", "b": "eu"}
    await cluster.turn()
    slots = await asyncio.gather(*waiting)
    assert Counter(slot.node_id for slot in slots) == {"a": 4, "b": 2}


async def test_nothing_starts_on_a_cordoned_node_and_idle_slots_there_end() -> None:
    cluster = Cluster({"a": "eu", "b": "eu"})
    slots = await cluster.take(count=3)
    assert {slot.node_id for slot in slots} == {"a"}
    cluster.pool.put(slots.pop())
    cluster.cordons = {"a": "bad disk"}
    await cluster.turn()
    assert len(cluster.pool.idle) == 0
    assert cluster.free("a") == 2
    others = await cluster.take(count=4)
    assert {slot.node_id for slot in others} == {"b"}
    waiting = cluster.begin()
    await steps(20)
    assert [selector.not_nodes for _, selector in cluster.waiting.values()] == [("a",)]
    cluster.pool.put(slots.pop())
    assert not waiting.done()
    assert cluster.free("a") == 3, "a slot that comes free there ends"
    cluster.cordons = {}
    await cluster.turn()
    assert (await waiting).node_id == "a"


async def test_what_may_not_wait_is_refused_at_once_and_leaves_nothing() -> None:
    cluster = Cluster({"a": "eu"})
    impatient = Request(ONE, patient=False)
    taken = await cluster.take(impatient, count=4)
    for refuse in (lambda: cluster.pool.check_room(impatient), lambda: asyncio.wait_for(cluster.begin(impatient), 1)):
        with pytest.raises(NoCapacity) as refused:
            await refuse()  # type: ignore[misc]
        assert refused.value.field == "wait_for_capacity"
    assert cluster.waiting == {}
    cluster.pool.put(taken.pop())
    cluster.pool.check_room(impatient)


async def test_what_may_not_wait_is_refused_soon_where_ray_sees_less_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "START_S", 0.05)
    cluster = Cluster({"a": "eu"})
    await cluster.pool.refresh()
    monkeypatch.setattr(cluster, "free", lambda node: 0)  # as of now
    with pytest.raises(NoCapacity):
        await asyncio.wait_for(cluster.begin(Request(ONE, patient=False)), 5)
    assert cluster.waiting == {}
    assert list(cluster.pool.waiting_callers()) == []


async def test_the_deadline_tells_why() -> None:
    cluster = Cluster({"a": "us"})
    with pytest.raises(DeadlineExceeded) as late:
        await cluster.begin(EU, deadline_s=0.01)
    assert "eu" in late.value.message
    assert cluster.waiting == {}
    assert list(cluster.pool.waiting()) == []


async def test_the_environment_that_uses_least_is_next() -> None:
    cluster = Cluster({"a": "eu", "b": "eu"})
    greedy, modest = await cluster.take(environment="greedy", count=7), await cluster.take(environment="modest")
    waiting = [cluster.begin(environment="greedy") for _ in range(3)]
    await steps(10)
    late = [cluster.begin(environment="modest") for _ in range(4)]
    await steps(10)
    for _ in range(4):
        cluster.pool.put(greedy.pop())
        await steps(10)
    # 6:1, 5:2, 4:3, 3:4 in the order in which slots came free: the fourth goes to whoever has less.
    assert [task.done() for task in late] == [True, True, True, False]
    assert [task.done() for task in waiting] == [True, False, False]
    assert len(modest) == 1
    for task in [*waiting, *late]:
        task.cancel()


async def test_a_crowd_is_demand_though_ray_is_asked_for_few() -> None:
    cluster = Cluster({})
    tasks = [cluster.begin(EU, environment=f"e{number % 3}") for number in range(300)]
    await steps(50)
    assert len(cluster.waiting) == MAX_UNPLACED
    (group,) = cluster.pool.waiting()
    assert (group.count, group.regions) == (300, ("eu",))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert cluster.waiting == {}
    assert list(cluster.pool.waiting()) == []
    assert cluster.pool.stock.holders.used == {}


async def test_other_shapes_are_not_starved_by_those_that_reuse_each_others_slots() -> None:
    cluster = Cluster({"a": "eu"})
    busy = await cluster.take(environment="busy", count=4)
    again = [cluster.begin(environment="busy") for _ in range(2)]
    await steps(10)
    other = cluster.begin(Request(SlotShape(1.0, 512)), environment="modest")
    await steps(10)
    cluster.pool.put(busy.pop())
    slot = await other
    assert (slot.node_id, slot.shape.memory) == ("a", 512)
    same = cluster.begin(Request(SlotShape(1.0, 256)), environment="busy")
    await steps(10)
    cluster.pool.put(busy.pop())
    await steps(50)
    assert again[0].done(), "a slot that fits at once goes first, if nobody is treated unfairly"
    assert not same.done()
    for task in (again[1], same):
        task.cancel()
