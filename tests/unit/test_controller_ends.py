"""A sandbox that is ended while it is made, fails, or has lost its actor: it ends, once, and nothing of it stays."""

from __future__ import annotations

import asyncio

import pytest

from shoal.model.access import INSIDE
from shoal.model.errors import ImageNotFound, SandboxNotFound, Unavailable
from tests.unit.builders import spec
from tests.unit.controller_world import Refusal, World, steps

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

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
    async with asyncio.timeout(5):
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
    async with asyncio.timeout(5):
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
    async with asyncio.timeout(5):
        end = await controller.begin(sandboxes.terminate(info.id, INSIDE))
    assert end.reason == "terminated"
    assert controller.parts.registry.usage("main").sandboxes == 0
    await controller.kill()
