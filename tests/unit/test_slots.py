"""The pool of slots: reuse, waiting, pressure, and giving up, with actors that are made at a word."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from shoal.actors.controller import slot_demand
from shoal.actors.controller.idle_slots import IdleSlots
from shoal.actors.controller.machine import Machine
from shoal.actors.controller.placement import ANYWHERE, Request, Selector
from shoal.actors.controller.room import Amount, NodeRoom
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.slot_stock import SlotStock
from shoal.actors.controller.slots import SlotPool
from shoal.model.errors import DeadlineExceeded, Unavailable
from shoal.model.settings import PoolSettings
from shoal.model.spec import SlotShape
from tests.unit.controller_world import steps

pytestmark = pytest.mark.anyio

SMALL_SHAPE = SlotShape(0.125, 128)
SMALL = Request(SMALL_SHAPE)
LARGE = Request(SlotShape(2.0, 4096))
ALL = Amount(2.0, 8192)


@dataclass
class Maker:
    """Makes slots out of nothing: `place` lets the oldest unplaced one run, `fail` lets it die."""

    made: list[Slot] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    free: Amount = ALL
    _fates: dict[str, asyncio.Future[None]] = field(default_factory=dict)

    def create(self, shape: SlotShape, node_id: str | None = None, selector: Selector = ANYWHERE) -> Slot:
        slot = Slot(f"slot-{len(self.made)}", shape, None)
        self.made.append(slot)
        self._fates[slot.id] = asyncio.get_running_loop().create_future()
        return slot

    async def placed(self, slot: Slot) -> None:
        await self._fates[slot.id]
        slot.node_id = "node"

    def kill(self, slot: Slot) -> None:
        self.killed.append(slot.id)

    async def rooms(self) -> dict[str, NodeRoom]:
        return {"node": NodeRoom(ALL, self.free)}

    async def place(self, number: int) -> None:
        self._fates[f"slot-{number}"].set_result(None)
        await steps(50)

    async def fail(self, number: int, error: Exception) -> None:
        self._fates[f"slot-{number}"].set_exception(error)
        await steps(50)


class Facts:
    """Nothing but what Ray tells."""

    def capacities(self) -> dict[str, Machine]:
        return {}

    def cordoned(self) -> dict[str, str]:
        return {}


def pool(maker: Maker, **settings: object) -> SlotPool:
    idle = IdleSlots(PoolSettings.model_validate({"idle_slots": 0, **settings}), SMALL_SHAPE)
    return SlotPool(SlotStock(maker, Facts()), idle)


async def test_a_freed_slot_serves_before_the_one_that_is_being_made() -> None:
    maker = Maker()
    pool_ = pool(maker)
    first = asyncio.create_task(pool_.take(SMALL, "main", 30))
    await asyncio.sleep(0)
    await maker.place(0)
    slot = await first
    waiting = asyncio.create_task(pool_.take(SMALL, "main", 30))
    await asyncio.sleep(0)
    assert len(maker.made) == 2
    pool_.put(slot)
    assert await waiting is slot
    # Nobody waits for the second one any more: it leaves Ray's queue.
    assert maker.killed == ["slot-1"]


async def test_idle_slots_are_reused_newest_first() -> None:
    maker = Maker()
    pool_ = pool(maker)
    taken = []
    for number in range(2):
        task = asyncio.create_task(pool_.take(SMALL, "main", 30))
        await asyncio.sleep(0)
        await maker.place(number)
        taken.append(await task)
    for slot in taken:
        pool_.put(slot)
    assert await pool_.take(SMALL, "main", 30) is taken[1]
    assert len(maker.made) == 2


async def test_shapes_do_not_mix() -> None:
    maker = Maker()
    pool_ = pool(maker)
    pool_.put(Slot("idle", SMALL_SHAPE, None, "node"))
    task = asyncio.create_task(pool_.take(LARGE, "main", 30))
    await asyncio.sleep(0)
    assert maker.made[0].shape == LARGE.shape
    await maker.place(0)
    assert (await task).shape == LARGE.shape


async def test_a_deadline_gives_up_and_leaves_no_demand() -> None:
    maker = Maker()
    with pytest.raises(DeadlineExceeded) as caught:
        await pool(maker).take(SMALL, "main", 0.05)
    assert caught.value.field == "deadline"
    assert maker.killed == ["slot-0"]


async def test_giving_up_loses_no_slot() -> None:
    maker = Maker()
    pool_ = pool(maker)
    task = asyncio.create_task(pool_.take(SMALL, "main", 30))
    await asyncio.sleep(0)
    slot = Slot("freed", SMALL_SHAPE, None, "node")
    pool_.put(slot)  # in the very moment in which the caller gives up
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await pool_.take(SMALL, "main", 1) is slot


@pytest.mark.parametrize("error", [Unavailable("it died"), KeyError("a defect")])
async def test_a_slot_that_does_not_start_is_ended_and_reported_to_who_waits(error: Exception) -> None:
    maker = Maker()
    pool_ = pool(maker)
    task = asyncio.create_task(pool_.take(SMALL, "main", 30))
    await asyncio.sleep(0)
    await maker.fail(0, error)
    with pytest.raises(Unavailable, match="did not start"):
        await task
    assert maker.killed == ["slot-0"]


async def test_idle_slots_of_another_shape_make_room_where_there_is_none() -> None:
    maker = Maker(free=Amount(1.75, 8192 - 2 * 128))
    pool_ = pool(maker)
    for name in ("old", "young"):
        pool_.put(Slot(name, SMALL_SHAPE, None, "node"))
    task = asyncio.create_task(pool_.take(LARGE, "main", 30))
    await asyncio.sleep(0)
    await pool_.tend()
    assert maker.killed == ["old", "young"], "either holds some of the two cores"
    await maker.place(0)
    await task


async def test_what_was_ended_counts_as_room_before_ray_knows_it() -> None:
    maker = Maker(free=Amount(1.75, 8192 - 2 * 128))
    pool_ = pool(maker)
    half = Request(SlotShape(1.875, 128))
    for number in range(2):
        pool_.put(Slot(f"idle-{number}", SMALL_SHAPE, None, "node"))
    task = asyncio.create_task(pool_.take(half, "main", 30))
    await asyncio.sleep(0)
    for _ in range(3):
        await pool_.tend()
    assert maker.killed == ["idle-0"]
    await maker.place(0)
    await task


async def test_keeps_a_few_ready_and_lets_the_rest_go() -> None:
    maker = Maker()
    pool_ = pool(maker, idle_slots=1, linger=0)
    now = [100.0]
    pool_.stock.clock = lambda: now[0]
    await pool_.tend()
    await pool_.tend()
    assert len(maker.made) == 1, "one is being made: no second one"
    await maker.place(0)
    for number in range(3):
        pool_.put(Slot(f"extra-{number}", SMALL_SHAPE, None, "node"))
    now[0] += 1
    await pool_.tend()
    assert len(pool_.idle) == 1
    maker.free = Amount()
    now[0] += 10  # Ray knows by now that the others have ended
    await pool_.take(SMALL, "main", 1)
    await pool_.tend()
    assert len(maker.made) == 1, "without room none is made ahead"


async def test_closing_ends_every_slot_that_holds_nothing() -> None:
    maker = Maker()
    pool_ = pool(maker, idle_slots=1)
    await pool_.tend()
    pool_.put(Slot("idle", SMALL_SHAPE, None, "node"))
    pool_.close()
    assert set(maker.killed) == {"slot-0", "idle"}
    assert len(pool_.idle) == 0


async def test_a_crowd_is_served_a_bounded_number_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_demand, "MAX_UNPLACED", 3)
    maker = Maker(free=Amount())
    made = pool(maker)
    taking = [asyncio.create_task(made.take(SMALL, "main", 30)) for _ in range(7)]
    await asyncio.sleep(0)
    for number in range(7):
        assert len(maker.made) == min(7, number + 3)
        await maker.place(number)
    assert {slot.id for slot in await asyncio.gather(*taking)} == {f"slot-{n}" for n in range(7)}
    assert maker.killed == []


async def test_a_slot_that_later_ones_overtake_is_asked_for_anew() -> None:
    maker, now = Maker(), 100.0
    idle = IdleSlots(PoolSettings.model_validate({"idle_slots": 0}), SMALL_SHAPE)
    pool_ = SlotPool(SlotStock(maker, Facts(), clock=lambda: now), idle)
    await pool_.refresh()
    lost = asyncio.create_task(pool_.take(SMALL, "main", 90))
    await steps(50)
    for number in (1, 2):
        now += 12.0
        later = asyncio.create_task(pool_.take(Request(SlotShape(0.25, 256)), "main", 90))
        await steps(50)
        await maker.place(number)
        await later
        await pool_.tend()
        assert maker.killed == []
    now += 7.0
    await pool_.tend()
    assert maker.killed == ["slot-0"]
    await maker.place(3)
    assert (await lost).id == "slot-3"
