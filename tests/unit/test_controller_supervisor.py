"""The doer of what the phases ask for: each action has one, a defect strands no sandbox, and what happens at once
happens in some order.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shoal.actors.controller import supervisor as supervisor_module
from shoal.actors.controller.phase import ACTIVITY, Action, Phase
from shoal.model.access import INSIDE
from shoal.model.errors import Internal, SandboxEnded
from shoal.model.states import State
from tests.unit.builders import spec
from tests.unit.controller_world import NODE, Controller, World, steps, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]  # a machine may stand still for seconds

STEPS = 25
"""Turns of the loop after which a create is long done."""


async def running(world: World) -> tuple[Controller, str]:
    controller = await world.controller()
    info, _ = await controller.begin(controller.parts.sandboxes.create(spec(), 60, True, INSIDE))
    return controller, info.id


async def test_each_action_is_carried_out_in_one_place() -> None:
    controller = await World().controller()
    supervisor = controller.parts.supervisor
    assert set(supervisor._activities) == set(ACTIVITY.values())
    assert set(supervisor._at_once) == set(Action) - set(ACTIVITY.values())
    await controller.kill()


async def test_an_activity_that_fails_in_a_way_nobody_foresaw_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_AFTER_DEFECT_S", 0.01)
    world = World()
    failures = iter([Internal("ended failed"), RuntimeError("a defect")])
    answer = world.call

    async def call(handle: Any, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        if method == "ended":
            for failure in failures:
                raise failure
        return await answer(handle, method, *args, timeout_s=timeout_s)

    monkeypatch.setattr(world, "call", call)
    controller, sandbox_id = await running(world)
    await until(lambda: next(failures, None) is None, "it has failed twice")
    world.end(sandbox_id, returncode=3)
    end = await controller.begin(controller.parts.sandboxes.wait(sandbox_id, 20, INSIDE))
    assert (end.state, end.returncode) == (State.TERMINATED, 3)
    await controller.kill()


async def test_one_that_is_being_ended_says_so() -> None:
    world = World()
    controller, sandbox_id = await running(world)
    (record,) = controller.parts.registry.live()
    ending = controller.begin(controller.parts.sandboxes.terminate(sandbox_id, INSIDE))
    await record.life.reached({Phase.STOPPING})
    assert record.info.state is State.STOPPING
    assert (await ending).state is State.TERMINATED
    await controller.kill()


@pytest.mark.parametrize("asked_after", range(STEPS))
@pytest.mark.parametrize("start_s", [0.0, 0.002])
async def test_who_waits_for_a_create_that_is_ended_meanwhile_is_told(asked_after: int, start_s: float) -> None:
    world = World(start_s=start_s)
    controller = await world.controller()
    sandboxes = controller.parts.sandboxes
    creating = controller.begin(sandboxes.create(spec(idempotency_key="k"), 60, True, INSIDE))
    await steps(asked_after)
    async with asyncio.timeout(20):
        await controller.begin(sandboxes.give_up([("main", "k")], INSIDE))
        outcome = (await asyncio.gather(creating, return_exceptions=True))[0]
    if isinstance(outcome, BaseException):
        assert isinstance(outcome, SandboxEnded)
        assert outcome.fields["reason"] == "terminated"
    assert world.containers == {} or asked_after == 0, "before its first step there was nothing to give up"
    await controller.kill()


@pytest.mark.parametrize("lost_after", range(STEPS))
@pytest.mark.parametrize("asked", [True, False])
async def test_a_machine_that_is_lost_at_any_step_of_an_adoption(lost_after: int, asked: bool) -> None:
    world = World()
    controller, sandbox_id = await running(world)
    sandboxes = controller.parts.sandboxes
    (slot,) = world.slots.values()
    slot.die()
    asking = [controller.begin(sandboxes.terminate(sandbox_id, INSIDE))] if asked else []
    await steps(lost_after)
    async with asyncio.timeout(20):
        await controller.begin(controller.parts.supervisor.lose_node(NODE))
        await asyncio.gather(*asking)
        end = await controller.begin(sandboxes.wait(sandbox_id, 20, INSIDE))
    assert end.reason == "node_lost" or (asked and end.reason == "terminated")
    assert [e.kind in ("failed", "terminated") for e in world.disk.events].count(True) == 1, "it ends once"
    assert controller.parts.registry.usage("main").sandboxes == 0
    await controller.kill()
