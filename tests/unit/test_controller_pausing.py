"""Paused sandboxes: nobody reaches them, whatever is killed meanwhile, and what ends others ends them."""

from __future__ import annotations

import asyncio

import pytest

from shoal.actors.controller.phase import Phase
from shoal.actors.controller.record import SandboxRecord, from_row, to_row
from shoal.model.access import INSIDE, Caller
from shoal.model.errors import FailedPrecondition, Internal, SandboxEnded
from shoal.model.states import Reason, State
from tests.unit.builders import spec
from tests.unit.controller_world import Controller, World, steps, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

ANN = Caller("tk-1")
STEPS = 30


async def created(controller: Controller, **changes: object) -> SandboxRecord:
    info, _ = await controller.begin(controller.parts.sandboxes.create(spec(**changes), 60, True, INSIDE))
    record = controller.parts.registry.get(info.id)
    assert record is not None
    await until(lambda: record.life.phase is Phase.RUNNING, "that it runs is on record")
    return record


async def test_it_is_frozen_and_goes_on() -> None:
    world = World()
    controller = await world.controller()
    record = await created(controller)
    pausing = controller.parts.pausing
    one, two = await asyncio.gather(*(controller.begin(pausing.pause(record.id, ANN)) for _ in range(2)))
    assert one == two
    assert (one.state, world.paused) == (State.PAUSED, {record.id})
    with pytest.raises(FailedPrecondition) as caught:
        await controller.parts.sandboxes.grant(record.id, INSIDE)
    assert caught.value.state == "paused"
    assert from_row(to_row(record)).state is State.PAUSED
    assert (await controller.begin(pausing.resume(record.id, ANN))).state is State.RUNNING
    assert world.paused == set()
    await controller.parts.sandboxes.grant(record.id, INSIDE)
    kinds = [event.kind for event in world.disk.events if event.sandbox_id == record.id]
    assert kinds == ["created", "starting", "running", "paused", "running"]
    assert [entry.action for entry in world.disk.audit][-2:] == ["sandbox.pause", "sandbox.resume"]
    await controller.kill()


async def test_a_request_resumes_it_where_it_may() -> None:
    world = World()
    controller = await world.controller()
    record, shy = await created(controller), await created(controller, autostart=False)
    for each in (record, shy):
        await controller.begin(controller.parts.pausing.pause(each.id, ANN))
    await controller.begin(controller.parts.starting.wake(record.id, 20))
    with pytest.raises(FailedPrecondition):
        await controller.begin(controller.parts.starting.wake(shy.id, 20))
    assert world.paused == {shy.id}
    await controller.kill()


async def test_one_that_cannot_be_frozen_runs() -> None:
    world = World(pause_fails=Internal("no"))
    controller = await world.controller()
    record = await created(controller)
    with pytest.raises(Internal):
        await controller.begin(controller.parts.pausing.pause(record.id, ANN))
    assert record.state is State.RUNNING
    await controller.parts.sandboxes.grant(record.id, INSIDE)
    await controller.kill()


async def test_it_ends_and_stops_as_others_do() -> None:
    world = World()
    controller = await world.controller()
    record, kept = await created(controller), await created(controller, persistent=True, timeout=None)
    for each in (record, kept):
        await controller.begin(controller.parts.pausing.pause(each.id, ANN))
    ended = await controller.begin(controller.parts.sandboxes.terminate(record.id, INSIDE))
    assert ended.reason is Reason.TERMINATED
    with pytest.raises(SandboxEnded):
        await controller.begin(controller.parts.pausing.resume(record.id, ANN))
    await controller.begin(controller.parts.starting.stop(kept.id, ANN))
    with pytest.raises(FailedPrecondition) as caught:
        await controller.begin(controller.parts.pausing.pause(kept.id, ANN))
    assert caught.value.state == "stopped"
    started = await controller.begin(controller.parts.starting.start(kept.id, 20, ANN))
    assert started.state is State.RUNNING, "what it was paused for is over"
    await controller.kill()


@pytest.mark.parametrize("method", ["pause", "resume"])
@pytest.mark.parametrize("killed_after", range(STEPS))
async def test_a_controller_killed_meanwhile(killed_after: int, method: str) -> None:
    world = World(pause_s=0.0001)
    first = await world.controller()
    record = await created(first)
    if method == "resume":
        await first.begin(first.parts.pausing.pause(record.id, ANN))
    first.begin(getattr(first.parts.pausing, method)(record.id, ANN))
    await steps(killed_after)
    await first.kill()
    second = await world.controller()
    found = second.parts.registry.get(record.id)
    assert found is not None
    frozen = found.state is State.PAUSED
    await until(lambda: (record.id in world.paused) is frozen, "it is as its record says")
    assert (await second.begin(second.parts.pausing.resume(record.id, ANN))).state is State.RUNNING
    assert world.paused == set()
    await second.kill()
