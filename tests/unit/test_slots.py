"""The pool of slots: reuse, waiting, pressure, and giving up, with actors that are made at a word."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from shoal.actors.controller import slots
from shoal.actors.controller.slots import Slot, SlotPool
from shoal.model.errors import DeadlineExceeded, Unavailable
from shoal.model.settings import NodeSettings
from shoal.model.spec import SlotShape
from tests.unit.controller_world import steps, until

pytestmark = pytest.mark.anyio

SMALL = SlotShape(0.125, 128, 0, None)
LARGE = SlotShape(2.0, 4096, 0, None)


@dataclass
class Maker:
    """Makes slots out of nothing: `place` lets the oldest unplaced one run, `fail` lets it die."""

    made: list[Slot] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    room: bool = True
    _fates: dict[str, asyncio.Future[None]] = field(default_factory=dict)

    def create(self, shape: SlotShape, node_id: str | None = None) -> Slot:
        slot = Slot(f"slot-{len(self.made)}", shape, None)
        self.made.append(slot)
        self._fates[slot.id] = asyncio.get_running_loop().create_future()
        return slot

    async def placed(self, slot: Slot) -> None:
        await self._fates[slot.id]
        slot.node_id = "node"

    def kill(self, slot: Slot) -> None:
        self.killed.append(slot.id)

    async def has_room(self, shape: SlotShape) -> bool:
        return self.room

    async def place(self, number: int) -> None:
        self._fates[f"slot-{number}"].set_result(None)
        await steps(50)

    async def fail(self, number: int) -> None:
        self._fates[f"slot-{number}"].set_exception(Unavailable("it died"))
        await steps(50)


def pool(maker: Maker, **settings: object) -> SlotPool:
    return SlotPool(maker, NodeSettings.model_validate({"idle_slots": 0, **settings}), SMALL)


async def test_a_freed_slot_serves_before_the_one_that_is_being_made() -> None:
    maker = Maker()
    pool_ = pool(maker)
    first = asyncio.create_task(pool_.take(SMALL, 30))
    await asyncio.sleep(0)
    await maker.place(0)
    slot = await first
    waiting = asyncio.create_task(pool_.take(SMALL, 30))
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
        task = asyncio.create_task(pool_.take(SMALL, 30))
        await asyncio.sleep(0)
        await maker.place(number)
        taken.append(await task)
    for slot in taken:
        pool_.put(slot)
    assert await pool_.take(SMALL, 30) is taken[1]
    assert len(maker.made) == 2


async def test_shapes_do_not_mix() -> None:
    maker = Maker()
    pool_ = pool(maker)
    pool_.put(Slot("idle", SMALL, None, "node"))
    task = asyncio.create_task(pool_.take(LARGE, 30))
    await asyncio.sleep(0)
    assert maker.made[0].shape == LARGE
    await maker.place(0)
    assert (await task).shape == LARGE


async def test_a_deadline_gives_up_and_leaves_no_demand() -> None:
    maker = Maker()
    with pytest.raises(DeadlineExceeded, match="no room"):
        await pool(maker).take(SMALL, 0.05)
    assert maker.killed == ["slot-0"]


async def test_giving_up_loses_no_slot() -> None:
    maker = Maker()
    pool_ = pool(maker)
    task = asyncio.create_task(pool_.take(SMALL, 30))
    await asyncio.sleep(0)
    slot = Slot("freed", SMALL, None, "node")
    pool_.put(slot)  # in the very moment in which the caller gives up
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await pool_.take(SMALL, 1) is slot


async def test_a_slot_that_dies_is_reported_to_who_waits() -> None:
    maker = Maker()
    pool_ = pool(maker)
    task = asyncio.create_task(pool_.take(SMALL, 30))
    await asyncio.sleep(0)
    await maker.fail(0)
    with pytest.raises(Unavailable, match="did not start"):
        await task


async def test_idle_slots_of_another_shape_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_PRESSURE_S", 0.01)
    maker = Maker()
    pool_ = pool(maker)
    pool_.put(Slot("old", SMALL, None, "node"))
    pool_.put(Slot("young", SMALL, None, "node"))
    task = asyncio.create_task(pool_.take(LARGE, 30))
    await until(lambda: bool(maker.killed), "one makes room")
    assert maker.killed[0] == "old"
    await maker.place(0)
    await task


async def test_keeps_a_few_ready_and_lets_the_rest_go() -> None:
    maker = Maker()
    pool_ = pool(maker, idle_slots=1, slot_linger=0)
    await pool_.tend()
    await pool_.tend()
    assert len(maker.made) == 1, "one is being made: no second one"
    await maker.place(0)
    for number in range(3):
        pool_.put(Slot(f"extra-{number}", SMALL, None, "node"))
    await asyncio.sleep(0.01)
    await pool_.tend()
    assert pool_.idle_count == 1
    maker.room = False
    await pool_.take(SMALL, 1)
    await pool_.tend()
    assert len(maker.made) == 1, "without room none is made ahead"


async def test_closing_ends_every_slot_that_holds_nothing() -> None:
    maker = Maker()
    pool_ = pool(maker, idle_slots=1)
    await pool_.tend()
    pool_.put(Slot("idle", SMALL, None, "node"))
    pool_.close()
    assert set(maker.killed) == {"slot-0", "idle"}
    assert pool_.idle_count == 0


async def test_a_crowd_is_served_a_bounded_number_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MAX_UNPLACED", 3)
    maker = Maker()
    made = pool(maker)
    taking = [asyncio.create_task(made.take(SMALL, 30)) for _ in range(7)]
    await asyncio.sleep(0)
    for number in range(7):
        assert len(maker.made) == min(7, number + 3)
        await maker.place(number)
    assert {slot.id for slot in await asyncio.gather(*taking)} == {f"slot-{n}" for n in range(7)}
    assert maker.killed == []
