"""A sandbox that is ended while it is made, fails, or has lost its actor: it ends, once, and nothing of it stays."""

from __future__ import annotations

import asyncio

import pytest

from shoal.actors.controller.store import Change
from shoal.model.access import INSIDE
from shoal.model.errors import ImageNotFound, SandboxNotFound, Unavailable
from shoal.model.states import State
from tests.unit.builders import spec
from tests.unit.controller_world import NODE, Controller, Refusal, World, steps, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]  # a machine may stand still for seconds

STEPS = 25
"""Turns of the loop after which a create is long done."""


@pytest.mark.parametrize("asked_after", range(STEPS))
@pytest.mark.parametrize("idle", [True, False])
async def test_a_start_that_fails_while_its_end_is_asked_for(asked_after: int, idle: bool) -> None:
    world = World()
    controller = await world.controller()
    sandboxes = controller.parts.sandboxes
    if idle:
        (await world.idle_slot(controller)).fails = ImageNotFound("there is no such image")
    else:
        world.new_slots_fail = ImageNotFound("there is no such image")
    info, _ = await controller.begin(sandboxes.create(spec(), 60, False, INSIDE))
    await steps(asked_after)
    async with asyncio.timeout(20):
        end = await controller.begin(sandboxes.terminate(info.id, INSIDE))
    assert end.reason in ("image_error", "terminated")
    assert world.disk.row(info.id)["end"]["reason"] == end.reason
    told = [event.kind for event in world.disk.events if event.sandbox_id == info.id]
    assert [kind in ("failed", "terminated") for kind in told].count(True) == 1, "it ends once"
    assert world.containers == {}
    assert controller.parts.registry.usage("main").sandboxes == 0
    await controller.kill()


@pytest.mark.parametrize("given_up", [True, False])
@pytest.mark.parametrize("idle", [True, False])
async def test_a_create_that_is_refused_while_its_end_is_asked_for(given_up: bool, idle: bool) -> None:
    world = World()
    controller = await world.controller()
    sandboxes = controller.parts.sandboxes
    if idle:
        await world.idle_slot(controller)
    refusal = Refusal(world)
    creating = controller.begin(sandboxes.create(spec(idempotency_key="k"), 60, True, INSIDE))
    await refusal.come.wait()
    (record,) = controller.parts.registry.live()
    ask = sandboxes.give_up([("main", "k")], INSIDE) if given_up else sandboxes.terminate(record.id, INSIDE)
    ending = controller.begin(ask)
    await steps(5)
    refusal.refuse.set()
    async with asyncio.timeout(20):
        with pytest.raises(Unavailable):
            await creating
        if given_up:
            assert await ending == [("main", "k")], "there is nothing of it"
        else:
            with pytest.raises(Unavailable):
                await ending
    assert world.disk.sandboxes == {}
    with pytest.raises(SandboxNotFound):
        await controller.begin(sandboxes.terminate(record.id, INSIDE))
    await controller.kill()


@pytest.mark.parametrize("asked_after", range(STEPS))
@pytest.mark.parametrize("remove_s", [0.0, 0.02])
async def test_one_whose_slot_was_lost_and_that_finds_no_other(asked_after: int, remove_s: float) -> None:
    world = World(remove_s=remove_s)
    controller = await world.controller()
    sandboxes = controller.parts.sandboxes
    slot = await world.idle_slot(controller)
    slot.alive, world.capacity = False, 0
    info, _ = await controller.begin(sandboxes.create(spec(), 60, False, INSIDE))
    await steps(asked_after)
    async with asyncio.timeout(20):
        end = await controller.begin(sandboxes.terminate(info.id, INSIDE))
    assert end.reason == "terminated"
    assert controller.parts.registry.usage("main").sandboxes == 0
    await controller.kill()


class TestAnActorThatDiedInAFullCluster:
    """Another sandbox has the room by the time that a new actor asks for it."""

    async def begin(self, world: World, timeout: float) -> tuple[Controller, str]:
        controller = await world.controller()
        sandboxes = controller.parts.sandboxes
        info, _ = await controller.begin(sandboxes.create(spec(timeout=timeout), 60, True, INSIDE))
        (slot,) = world.slots.values()
        other, _ = await controller.begin(sandboxes.create(spec(), 60, False, INSIDE))
        slot.die()
        await until(lambda: other.id in world.containers, "the other has its room")
        await until(lambda: len(world.slots) == 3, "a new actor waits for room")
        return controller, info.id

    def check(self, world: World, controller: Controller, sandbox_id: str) -> None:
        assert sandbox_id not in world.containers
        assert len(world.containers) == 1, "the other lives on"
        assert [slot.sandbox_id for slot in world.slots.values() if slot.alive] == list(world.containers)
        assert controller.parts.registry.usage("main").sandboxes == 1
        assert world.disk.row(sandbox_id)["end"] is not None

    @pytest.mark.parametrize("asked", [1, 2])
    async def test_it_can_be_ended(self, asked: int) -> None:
        world = World(capacity=1)
        controller, sandbox_id = await self.begin(world, timeout=60)
        sandboxes = controller.parts.sandboxes
        async with asyncio.timeout(20):
            ends = await asyncio.gather(
                *(controller.begin(sandboxes.terminate(sandbox_id, INSIDE)) for _ in range(asked))
            )
        assert {(end.state, end.reason) for end in ends} == {(State.TERMINATED, "terminated")}
        self.check(world, controller, sandbox_id)
        await controller.kill()

    async def test_its_lifetime_holds(self) -> None:
        world = World(capacity=1)
        controller, sandbox_id = await self.begin(world, timeout=0.2)
        end = await controller.begin(controller.parts.sandboxes.wait(sandbox_id, 20, INSIDE))
        assert (end.state, end.reason) == (State.TERMINATED, "timeout")
        assert "raise timeout=" in (end.message or "")
        self.check(world, controller, sandbox_id)
        await controller.kill()

    async def test_it_is_taken_over_once_there_is_room(self) -> None:
        world = World(capacity=1)
        controller, sandbox_id = await self.begin(world, timeout=60)
        world.capacity = 2
        await until(lambda: sandbox_id in [s.sandbox_id for s in world.slots.values() if s.alive], "an actor holds it")
        end = await controller.begin(controller.parts.sandboxes.terminate(sandbox_id, INSIDE))
        assert end.reason == "terminated"
        await controller.kill()

    async def test_an_end_that_was_asked_for_comes_after_a_restart(self) -> None:
        world = World(capacity=1)
        controller, sandbox_id = await self.begin(world, timeout=60)
        world.remove_s = 30.0  # the node is about to take it away
        controller.begin(controller.parts.sandboxes.terminate(sandbox_id, INSIDE))
        await until(lambda: world.disk.row(sandbox_id)["ended_by"] is not None, "it is on record that it is to end")
        await controller.kill()

        world.remove_s = 0.0
        second = await world.controller()
        end = await second.begin(second.parts.sandboxes.wait(sandbox_id, 20, INSIDE))
        assert end.reason == "terminated"
        self.check(world, second, sandbox_id)
        await second.kill()


async def test_all_that_ran_on_a_lost_machine_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    controller = await world.controller()
    sandboxes, supervisor = controller.parts.sandboxes, controller.parts.supervisor
    made = [await controller.begin(sandboxes.create(spec(), 60, True, INSIDE)) for _ in range(50)]
    store_is_back = asyncio.Event()

    async def held_up(change: Change) -> None:
        await store_is_back.wait()

    monkeypatch.setattr(world, "before_write", held_up)
    losing = controller.begin(supervisor.lose_node("another"))
    await losing
    assert len(controller.parts.registry.live()) == 50, "what ran elsewhere goes on"
    losing = controller.begin(supervisor.lose_node(NODE))
    await until(lambda: controller.parts.registry.live() == [], "none counts as living, however long the store takes")
    assert controller.parts.registry.usage("main").sandboxes == 0
    store_is_back.set()
    async with asyncio.timeout(20):
        await losing
    for info, _ in made:
        assert world.disk.row(info.id)["end"]["reason"] == "node_lost"
        assert (await controller.begin(sandboxes.wait(info.id, 20, INSIDE))).reason == "node_lost"
    await controller.kill()
