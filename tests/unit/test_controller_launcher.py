"""Starts that fail, each in its own way: what the next sandbox finds."""

from __future__ import annotations

import asyncio

import pytest

from shoal.actors.controller import quotas, record_writer
from shoal.actors.controller.store import Change
from shoal.model.access import INSIDE
from shoal.model.errors import DeadlineExceeded, FailedPrecondition, QuotaExceeded, Unavailable
from shoal.model.states import State
from tests.unit.builders import spec
from tests.unit.controller_world import World, steps, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]  # a machine may stand still for seconds


@pytest.mark.parametrize("took_place", [True, False])
@pytest.mark.parametrize("idle", [True, False])
async def test_a_create_of_which_nobody_knows_whether_it_is_on_record_has_failed(
    took_place: bool, idle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_writer, "_RETRY_S", 0.01)
    world = World()
    controller = await world.controller()
    if idle:
        await world.idle_slot(controller)
    failing = iter([Unavailable("whether the last write took place is not known", outcome="unknown")])

    async def fail_once(change: Change) -> None:
        for error in failing:
            raise error

    if took_place:
        world.after_write = fail_once
    else:
        world.before_write = fail_once
    sandboxes = controller.parts.sandboxes
    wanted = spec(idempotency_key="k", name="n")
    with pytest.raises(Unavailable) as caught:
        await controller.begin(sandboxes.create(wanted, 60, True, INSIDE))
    assert caught.value.fields["outcome"] == "unknown"
    info, _ = await controller.begin(sandboxes.create(wanted, 60, True, INSIDE))

    def first_ends() -> list[str]:
        rows = [world.disk.row(sandbox_id) for sandbox_id in world.disk.sandboxes if sandbox_id != info.id]
        return [row["end"]["reason"] for row in rows if row["end"] is not None]

    await until(lambda: first_ends() == ["start_failed"], "the first one's end is on record")
    await controller.kill()

    second = await world.controller()
    assert [record.id for record in second.parts.registry.live()] == [info.id]
    again, _ = await second.begin(second.parts.sandboxes.create(wanted, 60, True, INSIDE))
    assert again.id == info.id
    assert list(world.containers) == [info.id]
    await second.kill()


async def test_a_slot_whose_answer_was_lost_takes_no_other_sandbox() -> None:
    world = World()
    controller = await world.controller()
    sandboxes = controller.parts.sandboxes
    slot = await world.idle_slot(controller)
    slot.mute = True
    with pytest.raises(Unavailable):
        await controller.begin(sandboxes.create(spec(idempotency_key="k"), 60, True, INSIDE))
    await until(lambda: world.containers == {}, "what it had begun is removed")
    assert not slot.alive
    info, _ = await controller.begin(sandboxes.create(spec(idempotency_key="k"), 60, True, INSIDE))
    assert info.state is State.RUNNING
    assert list(world.containers) == [info.id]
    await controller.kill()


async def test_a_slot_that_is_occupied_is_passed_over_and_let_go() -> None:
    world = World()
    controller = await world.controller()
    slot = await world.idle_slot(controller)
    slot.fails = FailedPrecondition("slot slot-0 already holds sb-other", state="occupied")
    info, _ = await controller.begin(controller.parts.sandboxes.create(spec(), 60, True, INSIDE))
    assert info.state is State.RUNNING
    assert not slot.alive
    await controller.kill()


async def test_a_start_that_the_machine_refuses_leaves_its_slot_to_the_next() -> None:
    world = World()
    controller = await world.controller()
    sandboxes = controller.parts.sandboxes
    slot = await world.idle_slot(controller)
    slot.fails = FailedPrecondition("the engine has no room; free some of its disk", state="full")
    with pytest.raises(FailedPrecondition) as caught:
        await controller.begin(sandboxes.create(spec(), 60, True, INSIDE))
    assert caught.value.state == "full"
    await controller.begin(sandboxes.create(spec(), 60, True, INSIDE))
    assert list(world.slots.values()) == [slot]
    await controller.kill()


@pytest.mark.parametrize("commit_s", [0.0, 0.01])
async def test_a_create_that_finds_no_room_is_told_so_and_has_ended(commit_s: float) -> None:
    world = World(capacity=0)
    controller = await world.controller()
    sandboxes = controller.parts.sandboxes

    async def commit(change: Change) -> None:
        await asyncio.sleep(commit_s)

    world.before_write = commit
    creating = controller.begin(sandboxes.create(spec(idempotency_key="k"), 0.05, True, INSIDE))
    with pytest.raises(DeadlineExceeded) as caught:
        await creating
    assert caught.value.field == "deadline"
    (sandbox_id,) = world.disk.sandboxes
    assert world.disk.row(sandbox_id)["end"]["reason"] == "start_failed"
    await controller.kill()


async def test_who_asks_again_for_what_is_still_being_made_waits_no_longer_than_told() -> None:
    world = World(capacity=0)
    controller = await world.controller()
    sandboxes = controller.parts.sandboxes
    creating = controller.begin(sandboxes.create(spec(idempotency_key="k"), 60, True, INSIDE))
    await steps(10)
    with pytest.raises(DeadlineExceeded) as caught:
        await controller.begin(sandboxes.create(spec(idempotency_key="k"), 0.01, True, INSIDE))
    assert caught.value.field == "deadline"
    assert len(controller.parts.registry.live()) == 1, "none was made for the second call"
    assert not creating.done()
    await controller.kill()


async def test_what_waits_for_room_is_bounded_by_what_it_weighs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "SPEC_BYTES", 1 << 20)
    world = World(capacity=1)
    controller = await world.controller()
    long = {f"K{number}": "v" * 60_000 for number in range(5)}
    many = [spec(env=long) for _ in range(10)]
    made = await controller.begin(controller.parts.sandboxes.create_many(many, 30, False, INSIDE))
    refused = [outcome for outcome in made if isinstance(outcome, QuotaExceeded)]
    assert len(refused) == 7
    assert {error.fields["field"] for error in refused} == {"env"}
    small = controller.parts.sandboxes.create(spec(name="small"), 30, False, INSIDE)
    assert (await controller.begin(small))[0].state is State.PENDING
    await controller.kill()
    again = await world.controller()
    with pytest.raises(QuotaExceeded) as caught:
        await again.parts.sandboxes.create(spec(env=long), 30, False, INSIDE)
    assert caught.value.field == "env"
    for record in again.parts.registry.live():
        await again.parts.sandboxes.terminate(record.id, INSIDE)
    assert again.parts.registry.usage("main").weight == 0
    await again.kill()
