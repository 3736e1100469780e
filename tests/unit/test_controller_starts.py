"""Starts that fail, each in its own way: what the next sandbox finds."""

from __future__ import annotations

import pytest

from shoal.model.access import INSIDE
from shoal.model.errors import FailedPrecondition, Unavailable
from shoal.model.states import State
from tests.unit.builders import spec
from tests.unit.controller_world import World, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


async def test_a_slot_whose_answer_was_lost_takes_no_other_sandbox() -> None:
    world = World()
    controller = await world.controller()
    sandboxes = controller.parts.sandboxes
    slot = await world.idle_slot(controller)
    slot.mute = True
    with pytest.raises(Unavailable):
        await controller.begin(sandboxes.create(spec(idempotency_key="k"), 5, True, INSIDE))
    await until(lambda: world.containers == {}, "what it had begun is removed")
    assert not slot.alive
    info, _ = await controller.begin(sandboxes.create(spec(idempotency_key="k"), 5, True, INSIDE))
    assert info.state is State.RUNNING
    assert list(world.containers) == [info.id]
    await controller.kill()


async def test_a_slot_that_is_occupied_is_passed_over_and_let_go() -> None:
    world = World()
    controller = await world.controller()
    slot = await world.idle_slot(controller)
    slot.fails = FailedPrecondition("slot slot-0 already holds sb-other", state="occupied")
    info, _ = await controller.begin(controller.parts.sandboxes.create(spec(), 5, True, INSIDE))
    assert info.state is State.RUNNING
    assert not slot.alive
    await controller.kill()


async def test_a_start_that_the_machine_refuses_leaves_its_slot_to_the_next() -> None:
    world = World()
    controller = await world.controller()
    sandboxes = controller.parts.sandboxes
    slot = await world.idle_slot(controller)
    slot.fails = FailedPrecondition("the engine has no room; free some of its disk")
    with pytest.raises(FailedPrecondition, match="no room"):
        await controller.begin(sandboxes.create(spec(), 5, True, INSIDE))
    await controller.begin(sandboxes.create(spec(), 5, True, INSIDE))
    assert list(world.slots.values()) == [slot]
    await controller.kill()
