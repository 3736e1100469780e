"""Suspended sandboxes: their memory is kept while they are stopped, whatever wants them wakes them, and nothing is lost
when somebody is killed meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from shoal.actors.controller.record import from_row
from shoal.model.access import INSIDE
from shoal.model.errors import FailedPrecondition, Internal
from shoal.model.info import NOT_KEPT, SandboxInfo
from shoal.model.states import Reason, State
from tests.unit.controller_world import Controller, World, steps, until
from tests.unit.test_controller_persistent import ANN, DEADLINE_S, created, end, kinds, start, stop

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

STEPS = 40


async def made(controller: Controller, **changes: object) -> SandboxInfo:
    return await created(controller, **{"runtime": "runsc", **changes})


async def suspend(controller: Controller, sandbox_id: str) -> SandboxInfo:
    return await controller.begin(controller.parts.starting.suspend(sandbox_id, ANN))


async def test_it_is_suspended_and_goes_on_whoever_wakes_it() -> None:
    world = World(room=100)
    controller = await world.controller()
    info = await made(controller, name="web")
    starting = controller.parts.starting
    usage = controller.parts.registry.usage("main")
    for wake in (
        lambda: starting.wake(info.id, DEADLINE_S),
        lambda: starting.resume(info.id, ANN),
        lambda: starting.start(info.id, DEADLINE_S, ANN),
    ):
        told = await suspend(controller, info.id)
        assert (told.state, told.reason, told.memory_state, told.not_kept) == (
            State.STOPPED,
            Reason.SUSPENDED,
            "saved",
            NOT_KEPT,
        )
        assert (usage.sandboxes, usage.cpu, usage.memory) == (1, 0, 0)
        assert world.memories == {info.id}
        await until(lambda: all(slot.sandbox_id is None for slot in world.slots.values()), "its slot is free")
        assert await suspend(controller, info.id) == told
        with pytest.raises(FailedPrecondition) as caught:
            await controller.parts.sandboxes.grant(info.id, INSIDE)
        assert (caught.value.fields["suspended"], caught.value.fields["autostart"]) == (True, True)
        await controller.begin(wake())
        again = controller.parts.registry.get(info.id)
        assert again is not None
        assert (again.info.state, again.info.memory_state, again.suspended) == (State.RUNNING, "restored", False)
        assert not world.memories
    assert kinds(world, info.id) == ["created", "starting", "running", *(["stopped", "starting", "running"] * 3)]
    await end(world, controller, info.id)


async def test_what_gives_no_memory_is_told_and_one_whose_memory_cannot_be_saved_runs_on() -> None:
    world = World(room=100)
    controller = await world.controller()
    plain, info = await created(controller), await made(controller)
    with pytest.raises(FailedPrecondition) as caught:
        await suspend(controller, plain.id)
    assert caught.value.state == "no_memory"
    world.suspend_fails = Internal("the disk is full")
    with pytest.raises(Internal, match="disk is full"):
        await suspend(controller, info.id)
    record = controller.parts.registry.get(info.id)
    assert record is not None
    await until(lambda: world.disk.row(info.id)["stopping"] is None, "it is on record that it runs on")
    assert record.state is State.RUNNING
    world.suspend_fails = None
    assert (await suspend(controller, info.id)).memory_state == "saved"
    await stop(controller, plain.id)
    with pytest.raises(FailedPrecondition) as refused:
        await suspend(controller, plain.id)
    assert refused.value.state == "no_memory"
    await controller.begin(controller.parts.sandboxes.terminate(plain.id, INSIDE))
    await end(world, controller, info.id)


async def test_a_stop_lets_its_memory_go_and_a_failed_start_does_not() -> None:
    world = World(room=100)
    controller = await world.controller()
    info = await made(controller)
    await suspend(controller, info.id)
    for slot in world.slots.values():
        slot.fails = FailedPrecondition("it cannot go on from its memory", state="not_resumed")
    world.new_slots_fail = FailedPrecondition("it cannot go on from its memory", state="not_resumed")
    with pytest.raises(FailedPrecondition, match=r"sandbox.stop\(\)") as caught:
        await start(controller, info.id)
    assert caught.value.state == "not_resumed"
    assert (await controller.parts.sandboxes.get(info.id, INSIDE)).memory_state == "saved"
    world.new_slots_fail = None
    for slot in world.slots.values():
        slot.fails = None
    stopped = await stop(controller, info.id)
    assert (stopped.reason, stopped.memory_state) == (Reason.STOPPED, None)
    assert not world.memories
    assert (await start(controller, info.id)).memory_state is None
    await end(world, controller, info.id)


@pytest.mark.parametrize("suspend_s", [0.0, 0.002])
async def test_a_controller_killed_while_it_suspends(suspend_s: float) -> None:
    for killed_after in range(STEPS):
        world = World(room=100, suspend_s=suspend_s)
        first = await world.controller()
        info = await made(first)
        suspending = first.begin(first.parts.starting.suspend(info.id, ANN))
        await steps(killed_after)
        told = suspending.done()
        await first.kill()
        row = world.disk.row(info.id)
        asked = row["stopping"] is not None or row["state"] == "stopped"
        second = await world.controller()
        record = second.parts.registry.get(info.id)
        assert record is not None
        if asked:
            await until(
                lambda record=record: record.state is State.STOPPED, "it is suspended, though nobody asked again"
            )  # type: ignore[misc]
        else:
            assert not told
        assert (await suspend(second, info.id)).memory_state == "saved"
        assert from_row(world.disk.row(info.id)).suspended
        assert (await start(second, info.id)).memory_state == "restored"
        await end(world, second, info.id)


@pytest.mark.parametrize("what", ["controller", "slot"])
async def test_whoever_is_killed_while_it_wakes(what: str) -> None:
    for killed_after in range(STEPS):
        world = World(room=100, start_s=0.002)
        controller = await world.controller()
        info = await made(controller)
        await suspend(controller, info.id)
        work = controller.begin(controller.parts.starting.start(info.id, DEADLINE_S, ANN))
        await steps(killed_after)
        if what == "controller":
            await controller.kill()
            controller = await world.controller()
        else:
            for slot in world.slots.values():
                slot.die()
            await asyncio.wait([work], timeout=DEADLINE_S)
            work.exception()
        again = await start(controller, info.id)
        assert (again.state, again.memory_state) == (State.RUNNING, "restored")
        await end(world, controller, info.id)
