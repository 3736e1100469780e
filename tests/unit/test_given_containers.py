"""A create that wants no more than a slot holds ready: it has the container by its record, and the slot is told after.
Whoever is killed between the two, it is one sandbox in one container."""

from __future__ import annotations

import asyncio

import pytest

from shoal.actors.controller.phase import Phase
from shoal.actors.controller.store import Change
from shoal.model.access import INSIDE
from shoal.model.errors import Unavailable
from shoal.model.info import SandboxInfo
from shoal.model.states import Reason, State
from tests.unit.builders import spec
from tests.unit.controller_world import Controller, Refusal, World, _nothing, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


async def with_one_ready(**settings: object) -> tuple[World, Controller]:
    world = World(room=20, **settings)
    controller = await world.controller()
    pool = controller.parts.ready.declare("main", "main/pool", spec(), 1, 1)
    await until(lambda: len(pool.ready) == 1, "one is ready")
    return world, controller


async def create(controller: Controller) -> SandboxInfo:
    info, grant = await controller.parts.sandboxes.create(spec(), 5.0, True, INSIDE)
    assert grant is not None
    return info


async def runs_in(world: World, controller: Controller, sandbox_id: str, key: str) -> None:
    """It runs in that container, as its slot knows, and ends like any other."""
    await until(lambda: world.containers.get(sandbox_id) == key, "its slot is told")
    assert world.starts == [sandbox_id]
    found = controller.parts.registry.get(sandbox_id)
    assert found is not None
    await until(lambda: found.life.phase is Phase.RUNNING, "it runs")
    assert found.started is not None
    assert found.started.key == key
    await controller.parts.sandboxes.terminate(sandbox_id, INSIDE)
    assert world.containers == {}


async def test_one_write_brings_it_up_and_its_slot_is_told_after() -> None:
    world, controller = await with_one_ready()
    writes: list[list[str]] = []
    told_before: list[dict[str, str]] = []

    async def note(change: Change) -> None:
        writes.append([row["state"] for row in change.sandboxes])
        told_before.append(dict(world.containers))

    world.before_write = note
    (key,) = world.unclaimed
    info = await create(controller)
    assert (info.state, writes, told_before) == (State.RUNNING, [["running"]], [{}])
    await runs_in(world, controller, info.id, key)
    await controller.kill()


async def test_what_the_store_refused_has_no_slot_that_could_give_it_away_again() -> None:
    world, controller = await with_one_ready()
    (slot,) = world.slots.values()
    refusal = Refusal(world)
    creating = controller.begin(controller.parts.sandboxes.create(spec(), 5.0, True, INSIDE))
    await refusal.come.wait()
    refusal.refuse.set()
    with pytest.raises(Unavailable):
        await creating
    assert not slot.alive, "somebody may have been let in meanwhile"
    assert (world.containers, controller.parts.registry.live()) == ({}, [])
    world.before_write = _nothing
    assert (await create(controller)).state is State.RUNNING
    await controller.kill()


async def test_the_next_controller_tells_its_slot() -> None:
    world, controller = await with_one_ready()
    (key,) = world.unclaimed

    async def no_answer(change: Change) -> None:
        await asyncio.Event().wait()

    world.after_write = no_answer
    controller.begin(controller.parts.sandboxes.create(spec(), 5.0, True, INSIDE))
    await until(lambda: world.disk.sandboxes != {}, "it is on record")
    assert world.unclaimed == {key}
    await controller.kill()
    world.after_write = _nothing
    controller = await world.controller()
    (record,) = controller.parts.registry.live()
    await runs_in(world, controller, record.id, key)
    await controller.kill()


async def test_another_slot_has_it_where_its_own_died_before_it_was_told() -> None:
    world, controller = await with_one_ready()
    (slot,), (key,) = world.slots.values(), world.unclaimed

    async def kill(change: Change) -> None:
        slot.die()

    world.before_write = kill
    info = await create(controller)
    await runs_in(world, controller, info.id, key)
    await controller.kill()


async def test_it_ends_with_a_container_that_died_before_its_slot_was_told() -> None:
    world, controller = await with_one_ready()
    (slot,) = world.slots.values()

    async def lose(change: Change) -> None:
        slot.lose_container()
        world.before_write = _nothing

    world.before_write = lose
    info = await create(controller)
    found = controller.parts.registry.get(info.id)
    assert found is not None
    await until(lambda: found.ended, "it has ended")
    assert found.info.reason is Reason.EVICTED
    assert world.starts == [], "another container would not have what was written in that one"
    await controller.kill()


async def test_an_end_that_is_asked_for_before_its_slot_is_told_leaves_nothing() -> None:
    world, controller = await with_one_ready()
    held = asyncio.Event()

    async def hold_up(change: Change) -> None:
        await held.wait()

    world.before_write = hold_up
    creating = controller.begin(controller.parts.sandboxes.create(spec(), 5.0, True, INSIDE))
    await until(lambda: controller.parts.registry.live() != [], "it is being recorded")
    (record,) = controller.parts.registry.live()
    ending = controller.begin(controller.parts.sandboxes.terminate(record.id, INSIDE))
    held.set()
    await asyncio.gather(creating, ending, return_exceptions=True)
    await until(lambda: record.life.phase is Phase.CLOSED, "its slot is free")
    assert (world.containers, world.unclaimed) == ({}, set())
    await controller.kill()
