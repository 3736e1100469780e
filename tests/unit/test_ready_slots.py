"""What is kept ready, over the controller's real parts: taken by creates, replaced, given up, and found again by the
next controller."""

from __future__ import annotations

import asyncio

import pytest

from shoal.actors.controller import adoption, ready_maker
from shoal.actors.controller.kept_pool import KeptPool
from shoal.actors.controller.phase import Phase
from shoal.actors.controller.pools import shape_of
from shoal.actors.controller.ready_slots import NO_ROOM
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.store import Change
from shoal.model.access import INSIDE
from shoal.model.errors import ImageNotFound, ShoalError, Unavailable
from shoal.model.images import ImageKind, ImageRecord
from shoal.model.info import Cordon, SandboxInfo
from shoal.model.states import State
from tests.unit.builders import resources, spec
from tests.unit.controller_world import NODE, Controller, Refusal, World, _nothing, steps, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

KEPT = {"pools": {"idle_slots": 0, "ready": 2, "most_ready": 4}}


TOLD = {"A": "1"}
"""What is told to the agent of a container that was ready: its creator waits for that."""


async def create(controller: Controller, **changes: object) -> SandboxInfo:
    info, _ = await controller.parts.sandboxes.create(spec(**changes), 5.0, True, INSIDE)
    return info


async def end(controller: Controller, info: SandboxInfo) -> None:
    await controller.parts.sandboxes.terminate(info.id, INSIDE)


def declared(controller: Controller, least: int, most: int) -> KeptPool:
    return controller.parts.ready.declare("main", "main/pool", spec(), least, most)


async def filled(pool: KeptPool, count: int) -> None:
    await until(lambda: len(pool.ready) == count and not pool.making, f"{count} are ready")


async def test_a_shape_that_was_created_twice_is_kept_ready_and_the_next_create_takes_one() -> None:
    world = World(settings=KEPT, room=20)
    controller = await world.controller()
    await create(controller)
    await controller.parts.ready.turn()
    assert world.prepared == {}
    await create(controller)
    await until(lambda: len(world.prepared) == 2, "two are ready")
    before = set(world.prepared)
    info = await create(controller, env={"A": "1"}, name="named")
    record = controller.parts.registry.get(info.id)
    assert record is not None
    assert record.slot_id in before
    assert record.started is not None
    assert record.started.warm
    await until(lambda: len(world.prepared) >= 2, "it is replaced")
    assert (await create(controller, hostname="other")).node_id is not None
    await controller.kill()


async def test_memory_goes_on_for_nobody_who_has_not_asked() -> None:
    world = World(settings=KEPT, room=20)
    controller = await world.controller()
    ready, images = controller.parts.ready, controller.parts.images.images
    digests = dict(
        zip((ImageKind.SNAPSHOT, ImageKind.CHECKPOINT), (f"sha256:{64 * each}" for each in "ab"), strict=True)
    )
    for kind, digest in digests.items():
        images.put(ImageRecord(f"im-{kind}", "main", kind, 0.0, digest=digest))
    assert [ready.has_memory(digest) for digest in digests.values()] == [False, True]
    ready.has_memory = lambda image: image == shape_of(spec()).container.image
    for _ in range(3):
        await create(controller)
        await ready.turn()
    assert world.prepared == {}
    await filled(declared(controller, 2, 2), 2)
    await controller.kill()


async def test_a_declared_pool_fills_serves_its_environment_alone_and_never_exceeds_its_most() -> None:
    world = World(room=50)
    controller = await world.controller()
    pool = declared(controller, 3, 5)
    await filled(pool, 3)
    taken = await asyncio.gather(*(create(controller) for _ in range(10)))
    assert len({info.id for info in taken}) == 10
    for _ in range(200):
        assert len(pool.ready) + len(pool.making) <= 5
        await asyncio.sleep(0.001)
    assert pool.taken >= 3
    await filled(pool, len(pool.ready))
    ready = len(pool.ready)
    await create(controller, hostname="other")
    assert len(pool.ready) == ready
    await controller.kill()


async def test_no_room_is_told_and_made_good_as_soon_as_there_is_some() -> None:
    world = World(room=2, capacity=2)
    controller = await world.controller()
    pool = declared(controller, 4, 4)
    await filled(pool, 2)
    await until(lambda: pool.problem is not None, "it says so")
    world.room = world.capacity = 10
    await filled(pool, 4)
    assert pool.problem is None
    await controller.kill()


async def test_callers_that_wait_get_the_room_of_what_is_ready() -> None:
    world = World(room=4, capacity=4)
    controller = await world.controller()
    pool = declared(controller, 4, 4)
    await filled(pool, 4)
    made = await create(controller, hostname="other", resources=resources(cpu_request=0.25, memory_request=256))
    assert made.node_id is not None
    assert len(pool.ready) < 4
    assert len(world.prepared) == len(pool.ready)
    await controller.kill()


async def test_resizing_ends_what_is_above_and_retiring_ends_all() -> None:
    world = World(room=20)
    controller = await world.controller()
    pool = declared(controller, 4, 4)
    await filled(pool, 4)
    controller.parts.ready.resize(pool, 0, 1)
    await filled(pool, 1)
    await until(lambda: len(world.prepared) == 1, "their containers are removed")
    controller.parts.ready.retire("main", pool)
    await until(lambda: world.prepared == {}, "all are removed")
    assert not any(slot.alive for slot in world.slots.values())
    await controller.kill()


async def test_ready_ones_that_die_are_replaced() -> None:
    world = World(room=20)
    controller = await world.controller()
    pool = declared(controller, 2, 2)
    await filled(pool, 2)
    first, second = list(pool.ready)
    world.slots[first].die()
    world.slots[second].lose_container()
    await until(lambda: not {first, second} & set(pool.ready) and len(pool.ready) == 2, "both are replaced")
    assert set(world.prepared) == set(pool.ready)
    await controller.kill()


async def test_nothing_is_ready_where_no_sandbox_may_start() -> None:
    world = World(room=20)
    controller = await world.controller()
    pool = declared(controller, 2, 2)
    await filled(pool, 2)
    first = set(pool.ready)
    controller.parts.nodes.cordons[NODE] = Cordon(NODE, "old", "cluster", 0.0)
    await controller.parts.ready.turn()
    assert not first & set(pool.ready)
    await controller.kill()


async def test_pools_of_regions_serve_those_who_may_run_there_and_are_demand_for_machines() -> None:
    world = World(room=20)
    controller = await world.controller()
    ready = controller.parts.ready
    eu, us = (
        ready.declare("main", f"main/{region}", spec(regions=(region,)), least, 9)
        for region, least in (("eu", 2), ("us", 3))
    )
    await ready.turn()
    assert (eu.problem, world.slots) == (NO_ROOM, {}), "no node is in either"
    assert [(one.regions, one.count) for one in ready.lacking()] == [(("eu",), 2), (("us",), 3)]
    there = spec(regions=("us",))
    assert ready.take(there, ready.slots.stock.request(there)) is None
    assert (eu.missed, us.missed) == (0, 1)
    assert controller.parts.demand.demand().waiting[0].regions == ("eu",)
    ready.retire("main", eu)
    assert [one.regions for one in ready.lacking()] == [("us",)]
    await controller.kill()


async def test_what_died_unnoticed_costs_a_create_nothing() -> None:
    world = World(room=20)
    controller = await world.controller()
    pool = declared(controller, 2, 2)
    await filled(pool, 2)
    for slot_id in pool.ready:
        world.slots[slot_id].alive = False  # nobody has heard of it yet
    assert (await create(controller)).node_id is not None
    await controller.kill()


@pytest.mark.parametrize("prepare_s", [0.0, 0.2])
async def test_the_next_controller_finds_what_is_ready_again_and_makes_no_more(prepare_s: float) -> None:
    world = World(settings=KEPT, room=20, prepare_s=prepare_s)
    controller = await world.controller()
    for _ in range(2):
        await create(controller)
    await until(lambda: len(world.prepared) == 2, "two are ready, or being made so")
    before = set(world.prepared)
    await controller.kill()
    controller = await world.controller()
    await until(lambda: len(controller.parts.ready.spare()) == 2, "both are found")
    await controller.parts.ready.turn()
    assert {slot.id for slot in controller.parts.ready.spare()} == set(world.prepared) == before
    await controller.kill()


async def test_the_next_controller_ends_what_was_ready_for_a_pool_that_is_gone() -> None:
    world = World(room=20)
    controller = await world.controller()
    await filled(declared(controller, 3, 3), 3)
    await controller.kill()
    controller = await world.controller()
    await until(lambda: world.prepared == {}, "nothing is left")
    assert not any(slot.alive for slot in world.slots.values())
    await controller.kill()


async def test_an_image_that_is_not_there_is_the_pools_problem_and_not_tried_all_the_time() -> None:
    error: ShoalError = ImageNotFound("no such image")
    world = World(room=20, prepare_fails=error)
    controller = await world.controller()
    pool = declared(controller, 2, 2)
    await until(lambda: pool.problem == error.message, "it says why")
    for _ in range(5):
        await controller.parts.ready.turn()
        await asyncio.sleep(0.01)
    assert len(world.slots) <= 2
    assert world.prepared == {}
    await controller.kill()


async def test_a_create_joins_what_is_being_made_where_nothing_is_ready() -> None:
    world = World(room=20, prepare_s=0.5)
    controller = await world.controller()
    pool = declared(controller, 1, 1)
    await until(lambda: len(world.prepared) == 1, "one is being made")
    (slot_id,) = world.prepared
    info = await create(controller)
    record = controller.parts.registry.get(info.id)
    assert record is not None
    assert record.slot_id == slot_id
    world.prepare_s = 0.0
    await filled(pool, 1)
    await controller.kill()


async def test_a_creator_need_not_wait_for_the_disk_to_be_told_and_loses_nothing_by_it() -> None:
    world = World(room=20)
    controller = await world.controller()
    pool = declared(controller, 1, 1)
    await filled(pool, 1)
    held = asyncio.Event()

    async def hold_up_running(change: Change) -> None:
        if any(row["state"] == "running" for row in change.sandboxes):
            await held.wait()

    world.before_write = hold_up_running
    info = await create(controller, env=TOLD)
    assert info.state is State.RUNNING
    await controller.kill()
    held.set()
    controller = await world.controller()
    found = controller.parts.registry.get(info.id)
    assert found is not None
    await until(lambda: found.life.phase is Phase.RUNNING, "it is resumed")
    assert world.starts == [info.id]
    await controller.kill()


async def test_a_ready_slot_takes_a_sandbox_while_that_is_being_recorded() -> None:
    world = World(room=20)
    controller = await world.controller()
    pool = declared(controller, 1, 1)
    await filled(pool, 1)
    refusal = Refusal(world)
    creating = controller.begin(controller.parts.sandboxes.create(spec(env=TOLD), 5.0, True, INSIDE))
    await refusal.come.wait()
    await until(lambda: len(world.starts) == 1, "its slot holds it")
    assert not creating.done()
    refusal.refuse.set()
    with pytest.raises(Unavailable):
        await creating
    assert world.containers == {}, "nothing is left of what was refused"
    assert not any(slot.sandbox_id for slot in world.slots.values())
    world.before_write = _nothing
    assert (await create(controller)).node_id is not None
    await controller.kill()


async def test_a_ready_slot_does_not_run_a_command_before_it_is_recorded() -> None:
    world = World(room=20)
    controller = await world.controller()
    pool = declared(controller, 1, 1)
    await filled(pool, 1)
    refusal = Refusal(world)
    creating = controller.begin(controller.parts.sandboxes.create(spec(command=("true",)), 5.0, True, INSIDE))
    await refusal.come.wait()
    await steps(50)
    assert world.starts == []
    refusal.refuse.set()
    with pytest.raises(Unavailable):
        await creating
    await controller.kill()


async def test_a_controller_that_dies_while_it_records_leaves_no_slot_that_holds_something() -> None:
    world = World(room=20)
    controller = await world.controller()
    pool = declared(controller, 1, 1)
    await filled(pool, 1)
    refusal = Refusal(world)
    controller.begin(controller.parts.sandboxes.create(spec(env=TOLD), 5.0, True, INSIDE))
    await refusal.come.wait()
    await until(lambda: len(world.starts) == 1, "its slot holds it")
    await controller.kill()
    world.before_write = _nothing
    controller = await world.controller()
    await until(lambda: not any(slot.alive for slot in world.slots.values()), "its slot is ended")
    assert controller.parts.registry.live() == []
    await controller.kill()


async def test_starts_come_before_what_is_made_ready() -> None:
    world = World(room=40, start_s=0.5)
    controller = await world.controller()
    pool = declared(controller, 6, 6)
    await filled(pool, 6)
    creating = [controller.begin(create(controller, env=TOLD)) for _ in range(6)]
    await until(lambda: controller.parts.supervisor.launcher.starting == 6, "all are being started")
    await controller.parts.ready.turn()
    assert (len(pool.ready), pool.making) == (0, [])
    await asyncio.gather(*creating)
    await filled(pool, 6)
    await controller.kill()


async def test_draining_leaves_nothing() -> None:
    world = World(room=20)
    controller = await world.controller()
    await filled(declared(controller, 3, 3), 3)
    await controller.parts.drain()
    assert not any(slot.alive for slot in world.slots.values())
    await controller.kill()


async def test_an_actor_that_is_lost_while_it_starts_keeps_neither_pool_nor_sandbox_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ready_maker, "_PLACED_S", 0.05)
    monkeypatch.setattr(adoption, "_PLACED_S", 0.05)
    world, lost = World(room=20), set[str]()

    async def placed(slot: Slot) -> None:
        if lost & {"next"}:
            lost.add(slot.id)
            lost.discard("next")
            await asyncio.Event().wait()
        await World.placed(world, slot)

    world.placed = placed  # type: ignore[method-assign]
    controller = await world.controller()
    info = await create(controller)
    lost.add("next")
    pool = declared(controller, 1, 1)
    await until(lambda: "next" not in lost, "the first of its actors is lost")
    await filled(pool, 1)
    (slot,) = (slot for slot in world.slots.values() if slot.sandbox_id == info.id)
    lost.add("next")
    slot.die()
    await until(lambda: any(s.sandbox_id == info.id for s in world.slots.values() if s.alive), "another adopts it")
    assert len(lost) == 2
    assert not any(world.slots[slot_id].alive for slot_id in lost)
    await end(controller, info)
    await controller.kill()
