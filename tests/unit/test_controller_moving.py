"""Persistent sandboxes that leave their machine: their files are stored first, and nothing that fails or is killed on
the way loses them."""

from __future__ import annotations

import asyncio
import time

import pytest

from shoal.actors.controller.phase import Phase
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.slots import SlotPool
from shoal.model.access import INSIDE, Caller
from shoal.model.errors import FailedPrecondition, QuotaExceeded, Unavailable
from shoal.model.images import ImageState
from shoal.model.info import Cordon, SandboxInfo
from shoal.model.states import Reason, State
from tests.unit.builders import spec
from tests.unit.controller_world import NODE, Controller, World, steps, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

ANN = Caller("tk-1")
DEADLINE_S = 20.0
STEPS = 60


def two_nodes() -> World:
    return World(fetching=True, nodes={NODE: 0, "n2": 0})


async def stopped(controller: Controller, **changes: object) -> SandboxRecord:
    """A persistent sandbox that has run and is stopped."""
    wanted = spec(**{"persistent": True, "timeout": None, **changes})
    info, _ = await controller.begin(controller.parts.sandboxes.create(wanted, 60, True, INSIDE))
    await controller.begin(controller.parts.starting.stop(info.id, ANN))
    record = controller.parts.registry.get(info.id)
    assert record is not None
    await until(lambda: record.life.phase is Phase.STOPPED, "its slot is free")
    return record


def cordon(controller: Controller) -> None:
    controller.parts.nodes.cordons[NODE] = Cordon(NODE, "repairs", "tk-1", 0.0)


def start(controller: Controller, sandbox_id: str) -> asyncio.Task[SandboxInfo]:
    return controller.begin(controller.parts.starting.start(sandbox_id, DEADLINE_S, ANN))


async def test_a_start_on_a_cordoned_machine_moves_it() -> None:
    world = two_nodes()
    controller = await world.controller()
    record = await stopped(controller)
    key = world.stopped[record.id]
    cordon(controller)
    info = await start(controller, record.id)  # the world places it on the same machine, as it has no other
    assert world.stopped == {}, "its old container is gone"
    assert (info.state, info.spec) == (State.RUNNING, record.spec)
    assert world.containers[record.id] != key, "it is another container"
    assert record.home is not None
    (image,) = controller.parts.images.images.all()
    assert record.launch_spec.image == image.digest
    assert (image.state, image.stored) == (ImageState.GOING, True), "nobody else starts from it"
    assert [event.kind for event in world.disk.events][-3:] == ["moved", "starting", "running"]
    await controller.parts.image_removal.turn()
    assert controller.parts.images.images.get(image.id) is not None, "what runs needs its layers"

    await controller.begin(controller.parts.sandboxes.terminate(record.id, INSIDE))
    await controller.parts.image_removal.turn()
    assert controller.parts.images.images.all() == []
    assert world.images == world.containers == {}
    await controller.kill()


async def test_what_cannot_be_stored_stays_where_it_is() -> None:
    world = two_nodes()
    world.store_fails = [Unavailable("the object storage is away")]
    controller = await world.controller()
    record = await stopped(controller)
    cordon(controller)
    with pytest.raises(Unavailable):
        await start(controller, record.id)
    assert (record.state, [*world.stopped]) == (State.STOPPED, [record.id])
    world.fetching = False
    with pytest.raises(FailedPrecondition) as caught:
        await start(controller, record.id)
    assert caught.value.state == "stopped"
    await until(lambda: record.life.phase is Phase.STOPPED, "it rests")
    controller.parts.nodes.cordons.clear()
    await start(controller, record.id)
    assert world.starts.count(record.id) == 2
    await controller.kill()


async def test_a_drain_moves_what_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    world = two_nodes()
    controller = await world.controller()
    records = [await stopped(controller) for _ in range(3)]
    drain = controller.parts.machines.drain
    left: list[str] = []

    async def leave(node_id: str, timeout_s: float) -> None:
        left.append(node_id)

    monkeypatch.setattr(controller.parts.nodes, "leave", leave)
    world.snapshot_s = 0.01
    assert (await controller.begin(drain(NODE, "repairs", False, 0.0, ANN))).sandboxes == 3, "asked not to wait"
    assert left == []
    drained = await controller.begin(drain(NODE, "repairs", False, DEADLINE_S, ANN))
    assert (drained.left, left) == (True, [NODE])
    assert world.stopped == {}
    assert all(record.home is None and record.disk is not None for record in records)
    assert controller.parts.sandboxes.orphans([records[0].id], NODE) == [records[0].id]
    await controller.kill()


async def test_a_drain_says_what_cannot_be_moved() -> None:
    world = two_nodes()
    world.snapshot_fails = QuotaExceeded("no room")
    controller = await world.controller()
    record = await stopped(controller)
    with pytest.raises(FailedPrecondition) as caught:
        await controller.begin(controller.parts.machines.drain(NODE, "repairs", False, DEADLINE_S, ANN))
    assert caught.value.state == "not_moved"
    assert [*world.stopped] == [record.id]
    await controller.kill()


async def test_its_own_machine_without_room_does_not_hold_up_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PATIENCE_S", "_CROWDED_S"):
        monkeypatch.setattr(f"shoal.actors.controller.persistence.{name}", 0.01)
    world = two_nodes()
    controller = await world.controller()
    record = await stopped(controller)
    for slot in world.slots.values():
        slot.alive = False
    world.capacity = 0
    monkeypatch.setattr(SlotPool, "check_room", lambda pool, request: None)
    starting = start(controller, record.id)
    await until(lambda: world.stopped == {}, "it is moved")
    world.capacity = 100
    assert (await starting).state is State.RUNNING
    await controller.kill()


async def test_one_that_starts_by_itself_leaves_a_cordoned_machine() -> None:
    world = two_nodes()
    controller = await world.controller()
    wanted = spec(persistent=True, timeout=None, restart="always")
    info, _ = await controller.begin(controller.parts.sandboxes.create(wanted, 60, True, INSIDE))
    record = controller.parts.registry.get(info.id)
    assert record is not None
    cordon(controller)
    await controller.begin(controller.parts.supervisor.evict(record, "its node was drained", ANN))
    await until(lambda: record.life.phase is Phase.STOPPED, "its slot is free")
    assert record.info.reason is Reason.EVICTED
    controller.parts.starting.restart_due([record], time.time() + 60)
    await until(lambda: record.home is None and record.life.phase is Phase.STOPPED, "it is moved")
    controller.parts.starting.restart_due([record], time.time() + 60)
    await until(lambda: record.state is State.RUNNING, "it runs")
    await controller.kill()


@pytest.mark.parametrize("asked", ["terminate", "stop"])
@pytest.mark.parametrize("after", range(0, STEPS, 4))
async def test_what_is_asked_while_it_moves(after: int, asked: str) -> None:
    world = two_nodes()
    controller = await world.controller()
    record = await stopped(controller)
    moving = controller.begin(controller.parts.supervisor.move(record))
    await steps(after)
    if asked == "stop":
        await controller.begin(controller.parts.starting.stop(record.id, ANN))
        await asyncio.wait([moving])
        await start(controller, record.id)
    await controller.begin(controller.parts.sandboxes.terminate(record.id, INSIDE))
    await asyncio.wait([moving])
    moving.exception()
    assert record.info.reason is Reason.TERMINATED
    assert world.containers == world.stopped == {}
    await controller.kill()


@pytest.mark.parametrize("killed_after", range(0, STEPS, 2))
async def test_a_controller_killed_while_one_moves(killed_after: int) -> None:
    world = two_nodes()
    first = await world.controller()
    record = await stopped(first)
    first.begin(first.parts.supervisor.move(record))
    await steps(killed_after)
    await first.kill()
    second = await world.controller()
    found = second.parts.registry.get(record.id)
    assert found is not None
    assert found.state is State.STOPPED
    if found.home is not None:
        assert [*world.stopped] == [record.id], "its files are where its record says"
    else:
        assert found.disk is not None
        for sandbox_id in second.parts.sandboxes.orphans([*world.stopped], NODE):
            world.stopped.pop(sandbox_id)  # as its node's sweep does
    assert (await start(second, record.id)).state is State.RUNNING
    assert [*world.containers] == [record.id]
    assert not world.stopped
    await second.kill()


@pytest.mark.parametrize("killed_after", range(0, STEPS, 2))
async def test_a_controller_killed_at_the_first_start_on_a_new_machine(killed_after: int) -> None:
    world = two_nodes()
    first = await world.controller()
    record = await stopped(first)
    await first.begin(first.parts.supervisor.move(record))
    start(first, record.id)
    await steps(killed_after)
    await first.kill()
    second = await world.controller()
    assert (await start(second, record.id)).state is State.RUNNING
    assert [*world.containers] == [record.id]
    await second.begin(second.parts.starting.stop(record.id, ANN))
    assert [*world.stopped] == [record.id]
    await second.kill()
