"""A controller that is killed between any two of its steps: the next one finishes or removes what was half made, and
doubles nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from shoal.actors.controller import supervisor
from shoal.actors.controller.phase import ACCEPTED
from shoal.actors.controller.store import Change
from shoal.model.access import INSIDE, Caller
from shoal.model.errors import FailedPrecondition, Internal, SandboxEnded, Unavailable
from shoal.model.info import Listing
from shoal.model.states import State
from tests.unit.builders import spec
from tests.unit.controller_world import Controller, World, steps, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]  # a machine may stand still for seconds

STEPS = 35
"""Turns of the loop after which all that is tried here is long done."""


def living(controller: Controller) -> list[State]:
    return [record.state for record in controller.parts.registry.live()]


def all_run(controller: Controller, count: int) -> Callable[[], bool]:
    return lambda: living(controller) == [State.RUNNING] * count


async def end_all(world: World, controller: Controller) -> None:
    """Ends every sandbox; after that nothing may be left of any."""
    sandboxes = controller.parts.sandboxes
    ids = [record.id for record in controller.parts.registry.live()]
    await asyncio.gather(*(controller.begin(sandboxes.terminate(i, INSIDE)) for i in ids))
    assert world.containers == {}
    await until(lambda: all(s.sandbox_id is None for s in world.slots.values() if s.alive), "every slot is wiped")
    assert controller.parts.registry.usage("main").sandboxes == 0
    await controller.kill()


@pytest.mark.parametrize("killed_after", range(STEPS))
@pytest.mark.parametrize(("idle", "start_s"), [(0, 0.0), (2, 0.0), (2, 0.002)])
async def test_creates_that_nobody_waits_for_are_finished(killed_after: int, idle: int, start_s: float) -> None:
    world = World(start_s=start_s)
    first = await world.controller()
    for _ in range(idle):
        await world.idle_slot(first)
    wanted = [spec(idempotency_key=str(n), name=f"n{n}") for n in range(3)]
    accepting = first.begin(first.parts.sandboxes.create_many(wanted, 60, False, INSIDE))
    await steps(killed_after)
    answered = accepting.result() if accepting.done() else []
    await first.kill()

    on_record = set(world.disk.sandboxes)
    second = await world.controller()
    await until(all_run(second, len(on_record)), "what was accepted runs, though nobody came back")
    for outcome in answered:
        assert not isinstance(outcome, Exception)
        assert outcome[0].id in on_record, "it was said to be on record"
    again = await second.begin(second.parts.sandboxes.create_many(wanted, 60, True, INSIDE))
    ids = [outcome[0].id for outcome in again if not isinstance(outcome, Exception)]
    assert len(set(ids)) == 3
    assert on_record <= set(ids), "the same key gives the same sandbox"
    assert set(world.containers) == set(ids), "each has a container, and nothing else has"
    assert len(world.disk.sandboxes) == 3
    await end_all(world, second)


@pytest.mark.parametrize("killed_after", range(STEPS))
async def test_a_creator_that_comes_back_gets_its_sandbox(killed_after: int) -> None:
    world = World()
    first = await world.controller()
    creating = first.begin(first.parts.sandboxes.create(spec(idempotency_key="k"), 60, True, INSIDE))
    await steps(killed_after)
    await first.kill()
    assert creating.done()

    second = await world.controller()
    info, grant = await second.begin(second.parts.sandboxes.create(spec(idempotency_key="k"), 60, True, INSIDE))
    assert info.state is State.RUNNING
    assert grant is not None
    assert list(world.containers) == [info.id]
    assert list(world.disk.sandboxes) == [info.id]
    await end_all(world, second)


async def test_one_whose_creator_was_answered_lives_though_the_next_controller_comes_late() -> None:
    world = World()
    first = await world.controller()

    async def not_that_it_runs(change: Change) -> None:
        if any(row["state"] == "running" for row in change.sandboxes):
            await asyncio.Event().wait()

    world.before_write = not_that_it_runs
    deadline_s = 0.5
    info, _ = await first.begin(first.parts.sandboxes.create(spec(), deadline_s, True, INSIDE))
    await first.kill()
    world.before_write = World.before_write
    await asyncio.sleep(deadline_s)

    second = await world.controller()
    await until(all_run(second, 1), "its slot says that it runs")
    assert list(world.containers) == [info.id]
    await end_all(world, second)


@pytest.mark.parametrize("killed_after", range(STEPS))
async def test_an_end_that_was_asked_for_comes(killed_after: int) -> None:
    world = World()
    first = await world.controller()
    info, _ = await first.begin(first.parts.sandboxes.create(spec(), 60, True, INSIDE))
    ending = first.begin(first.parts.sandboxes.terminate(info.id, Caller("tk-1")))
    await steps(killed_after)
    told = ending.done()
    await first.kill()

    asked = world.disk.row(info.id)["ended_by"] is not None
    second = await world.controller()
    if asked:
        await until(lambda: not living(second), "it ends, though nobody asked again")
    else:
        assert not told
        await second.begin(second.parts.sandboxes.terminate(info.id, Caller("tk-1")))
    end = await second.begin(second.parts.sandboxes.wait(info.id, 20, INSIDE))
    assert end.reason == "terminated"
    assert world.disk.row(info.id)["ended_by"] == "tk-1"
    assert [e.token for e in world.disk.audit if e.action == "sandbox.terminate"] == ["tk-1"]
    kinds = [event.kind for event in world.disk.events if event.sandbox_id == info.id]
    assert kinds == ["created", "starting", "running", "terminated"]
    await end_all(world, second)


async def test_a_slot_that_dies_of_an_end_that_was_asked_for() -> None:
    world = World()
    controller = await world.controller()
    info, _ = await controller.begin(controller.parts.sandboxes.create(spec(), 60, True, INSIDE))
    (slot,) = world.slots.values()
    slot.dies_ending = True
    end = await controller.begin(controller.parts.sandboxes.terminate(info.id, Caller("tk-1")))
    assert (end.state, end.reason) == (State.TERMINATED, "terminated")
    await end_all(world, controller)


@pytest.mark.parametrize("killed_after", range(STEPS))
async def test_slots_that_die_with_the_controller(killed_after: int) -> None:
    world = World()
    first = await world.controller()
    wanted = [spec(idempotency_key=str(n)) for n in range(2)]
    first.begin(first.parts.sandboxes.create_many(wanted, 60, False, INSIDE))
    await steps(killed_after)
    for slot in world.slots.values():
        slot.alive = False
    await first.kill()
    second = await world.controller()
    await until(all_run(second, len(world.disk.sandboxes)), "what was accepted runs")
    assert set(world.containers) == set(world.disk.sandboxes)
    await end_all(world, second)


async def test_what_is_past_its_deadline_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_JOIN_S", 0.1)
    world = World(start_s=30.0)
    first = await world.controller()
    info, _ = await first.begin(first.parts.sandboxes.create(spec(idempotency_key="k"), 60, False, INSIDE))
    await until(lambda: world.disk.row(info.id)["slot_id"] is not None, "it is being started")
    await first.kill()
    world.disk.put({**world.disk.row(info.id), "deadline": time.time() - 1})
    second = await world.controller()
    end = await second.begin(second.parts.sandboxes.wait(info.id, 20, INSIDE))
    assert (end.state, end.reason) == (State.FAILED, "start_failed")
    assert "deadline" in (end.message or "")
    world.start_s = 0.0
    other, _ = await second.begin(second.parts.sandboxes.create(spec(idempotency_key="k"), 60, True, INSIDE))
    assert other.id != info.id, "the key is free again"
    await end_all(world, second)


async def test_one_that_waits_for_room_waits_on_after_a_restart() -> None:
    world = World(capacity=1)
    first = await world.controller()
    one, _ = await first.begin(first.parts.sandboxes.create(spec(), 60, True, INSIDE))
    two, _ = await first.begin(first.parts.sandboxes.create(spec(), 60, False, INSIDE))
    assert two.state is State.PENDING
    await first.kill()
    second = await world.controller()
    await until(lambda: len(living(second)) == 2, "both are known")
    await second.begin(second.parts.sandboxes.terminate(one.id, INSIDE))
    await until(all_run(second, 1), "the other takes its place")
    assert set(world.containers) == {two.id}
    await end_all(world, second)


async def test_one_that_waits_for_room_is_ended_at_once() -> None:
    world = World(capacity=0)
    controller = await world.controller()
    creating = controller.begin(controller.parts.sandboxes.create(spec(idempotency_key="k"), 60, True, INSIDE))
    await until(lambda: living(controller) == [State.PENDING], "it waits")
    (record,) = controller.parts.registry.live()
    await record.life.reached(ACCEPTED)
    foreign = Caller(environment="dev")
    assert await controller.begin(controller.parts.sandboxes.give_up([("main", "k")], foreign)) == []
    assert await controller.begin(controller.parts.sandboxes.give_up([("main", "k"), ("main", "x")], INSIDE)) == [
        ("main", "k")
    ]
    with pytest.raises(SandboxEnded):
        await creating
    await controller.kill()
    assert world.disk.row(record.id)["end"]["reason"] == "terminated"


async def test_what_others_have_asked_for_too_is_not_given_up() -> None:
    world = World()
    controller = await world.controller()
    sandboxes = controller.parts.sandboxes
    made, _ = await controller.begin(sandboxes.create(spec(idempotency_key="k"), 60, True, INSIDE))
    again, _ = await controller.begin(sandboxes.create(spec(idempotency_key="k"), 60, True, INSIDE))
    assert again.id == made.id
    await controller.begin(sandboxes.give_up([("main", "k")], INSIDE))
    assert living(controller) == [State.RUNNING]
    await end_all(world, controller)


async def test_a_full_disk_refuses_creates_and_loses_nothing_that_runs() -> None:
    world = World(start_s=0.01)
    controller = await world.controller()
    sandboxes = controller.parts.sandboxes
    world.disk.full = True
    with pytest.raises(Unavailable, match="disk is full"):
        await controller.begin(sandboxes.create(spec(name="n"), 60, False, INSIDE))
    assert living(controller) == []
    assert controller.parts.registry.usage("main").creates(0) == 0
    world.disk.full = False
    info, _ = await controller.begin(sandboxes.create(spec(name="n"), 60, False, INSIDE))
    await until(lambda: world.disk.row(info.id)["slot_id"] is not None, "it is being started")
    world.disk.full = True
    await until(all_run(controller, 1), "it runs all the same")
    with pytest.raises(Unavailable):
        await controller.begin(sandboxes.set_tags(info.id, {"a": "b"}, INSIDE))
    assert controller.parts.registry.live()[0].tags == {}
    world.disk.full = False
    await until(lambda: world.disk.row(info.id)["state"] == "running", "it is on record as soon as that can be")
    await end_all(world, controller)


async def test_one_that_lives_and_makes_no_sense_is_left_to_the_version_that_knows_it() -> None:
    world = World()
    first = await world.controller()
    info, _ = await first.begin(first.parts.sandboxes.create(spec(), 60, True, INSIDE))
    await until(lambda: world.disk.row(info.id)["state"] == "running", "that it runs is on record")
    await first.kill()
    row = world.disk.row(info.id)
    world.disk.put({**row, "spec": {**row["spec"], "invented_later": 1}})
    with pytest.raises(FailedPrecondition, match=rf"sandbox {info.id}, which lives.*invented_later.*run the version"):
        await world.controller()
    assert list(world.containers) == [info.id]
    assert [slot.sandbox_id for slot in world.slots.values() if slot.alive] == [info.id]

    world.disk.put(row)
    second = await world.controller()
    assert living(second) == [State.RUNNING]
    await end_all(world, second)


async def test_one_that_has_ended_and_makes_no_sense_keeps_nothing_from_being_seen() -> None:
    world = World()
    first = await world.controller()
    sandboxes = first.parts.sandboxes
    ids = [(await first.begin(sandboxes.create(spec(), 60, True, INSIDE)))[0].id for _ in range(3)]
    for sandbox_id in ids[:2]:
        await first.begin(sandboxes.terminate(sandbox_id, INSIDE))
    await first.kill()
    row = world.disk.row(ids[0])
    world.disk.put({**row, "spec": {**row["spec"], "invented_later": 1}})

    second = await world.controller()
    sandboxes = second.parts.sandboxes
    page = await second.begin(sandboxes.select(Listing(include_ended=True), INSIDE))
    assert {info.id for info in page.sandboxes} == set(ids[1:])
    with pytest.raises(Internal, match="makes no sense"):  # it was: that nobody is told it never was
        await second.begin(sandboxes.get(ids[0], INSIDE))
    await end_all(world, second)
