"""Persistent sandboxes: they stop where others end, come up again where their disk is, and a controller that is killed
meanwhile neither loses nor doubles one."""

from __future__ import annotations

import asyncio
import time

import pytest

from shoal.actors.controller import restarts
from shoal.actors.controller.phase import Phase
from shoal.actors.controller.record import SandboxRecord, from_row, to_row
from shoal.actors.messages import End
from shoal.model.access import INSIDE, Caller, Quota
from shoal.model.errors import FailedPrecondition, Internal, QuotaExceeded, SandboxEnded
from shoal.model.info import Cordon, SandboxInfo
from shoal.model.spec import Restart, SandboxSpec
from shoal.model.states import Reason, State
from tests.unit.builders import spec
from tests.unit.controller_world import NODE, Controller, World, steps, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

STEPS = 40
"""Turns of the loop after which all that is tried here is long done."""

DEADLINE_S = 20.0
ANN = Caller("tk-1")


def wanted(**changes: object) -> SandboxSpec:
    return spec(**{"persistent": True, "timeout": None, **changes})


async def created(controller: Controller, **changes: object) -> SandboxInfo:
    info, _ = await controller.begin(controller.parts.sandboxes.create(wanted(**changes), 60, True, INSIDE))
    return info


async def stop(controller: Controller, sandbox_id: str) -> SandboxInfo:
    return await controller.begin(controller.parts.starting.stop(sandbox_id, ANN))


async def start(controller: Controller, sandbox_id: str) -> SandboxInfo:
    return await controller.begin(controller.parts.starting.start(sandbox_id, DEADLINE_S, ANN))


async def end(world: World, controller: Controller, sandbox_id: str) -> None:
    """Ends it; nothing of it may be left."""
    info = await controller.begin(controller.parts.sandboxes.terminate(sandbox_id, INSIDE))
    assert info.reason is Reason.TERMINATED
    assert world.containers == world.stopped == {}
    await until(lambda: all(s.sandbox_id is None for s in world.slots.values() if s.alive), "every slot is wiped")
    usage = controller.parts.registry.usage("main")
    assert (usage.sandboxes, usage.cpu, usage.memory) == (0, 0, 0)
    await controller.kill()


def kinds(world: World, sandbox_id: str) -> list[str]:
    return [event.kind for event in world.disk.events if event.sandbox_id == sandbox_id]


async def test_it_stops_and_starts_with_the_same_container() -> None:
    world = World()
    controller = await world.controller()
    info = await created(controller, name="web")
    key = world.containers[info.id]
    usage = controller.parts.registry.usage("main")
    for _ in range(2):
        stopped = await stop(controller, info.id)
        assert (stopped.state, stopped.reason, stopped.returncode) == (State.STOPPED, Reason.STOPPED, 137)
        assert stopped.stopped_at is not None
        assert (usage.sandboxes, usage.cpu, usage.memory) == (1, 0, 0)
        assert world.stopped == {info.id: key}
        with pytest.raises(FailedPrecondition) as caught:
            await controller.parts.sandboxes.grant(info.id, INSIDE)
        assert caught.value.state == "stopped"
        assert (await stop(controller, info.id)).state is State.STOPPED
        again, same = await asyncio.gather(*(start(controller, info.id) for _ in range(2)))
        assert again == same
        assert (again.state, again.node_id, again.reason, again.stopped_at) == (State.RUNNING, NODE, None, None)
        assert world.containers == {info.id: key}
        assert usage.cpu == info.spec.resources.cpu_limit
    assert kinds(world, info.id) == ["created", "starting", "running", *(["stopped", "starting", "running"] * 2)]
    assert [entry.action for entry in world.disk.audit if entry.action == "sandbox.stop"] == ["sandbox.stop"] * 2
    await end(world, controller, info.id)


async def test_only_persistent_ones_stop() -> None:
    world = World()
    controller = await world.controller()
    info, _ = await controller.begin(controller.parts.sandboxes.create(spec(), 60, True, INSIDE))
    for ask in (stop, start):
        with pytest.raises(FailedPrecondition) as caught:
            await ask(controller, info.id)
        assert caught.value.state == "running"
    await controller.begin(controller.parts.sandboxes.terminate(info.id, INSIDE))
    with pytest.raises(SandboxEnded):
        await stop(controller, info.id)
    await controller.kill()


async def test_one_that_exits_stops_and_a_stopped_one_is_terminated() -> None:
    world = World()
    controller = await world.controller()
    info = await created(controller)
    world.end(info.id, 3, kept=True)
    record = controller.parts.registry.get(info.id)
    assert record is not None
    await until(lambda: record.state is State.STOPPED, "it stops")
    assert (record.info.reason, record.info.returncode) == (Reason.COMPLETED, 3)
    await until(lambda: all(slot.sandbox_id is None for slot in world.slots.values()), "its slot is free")
    await end(world, controller, info.id)


async def test_a_start_that_fails_leaves_it_stopped() -> None:
    world = World()
    controller = await world.controller()
    info = await created(controller)
    await stop(controller, info.id)
    world.new_slots_fail = Internal("no")
    with pytest.raises(Internal):
        await start(controller, info.id)
    stopped = await controller.parts.sandboxes.get(info.id, INSIDE)
    assert (stopped.state, stopped.reason) == (State.STOPPED, Reason.START_FAILED)
    world.new_slots_fail = None
    world.away = True
    with pytest.raises(FailedPrecondition) as caught:
        await start(controller, info.id)
    assert (caught.value.state, caught.value.fields["machine"]) == ("stopped", "m-1")
    world.away = False
    await start(controller, info.id)
    await end(world, controller, info.id)


async def test_a_start_needs_room_in_the_quota() -> None:
    world = World()
    controller = await world.controller()
    info = await created(controller)
    await stop(controller, info.id)
    await controller.begin(controller.parts.accounts.set_quota("main", Quota(cpu=1.0), INSIDE))
    other = await created(controller)
    with pytest.raises(QuotaExceeded):
        await start(controller, info.id)
    await controller.begin(controller.parts.sandboxes.terminate(other.id, INSIDE))
    await start(controller, info.id)
    await end(world, controller, info.id)


async def test_a_lost_machine_keeps_it_stopped_and_it_can_be_terminated_meanwhile() -> None:
    world = World()
    controller = await world.controller()
    one, two = await created(controller), await created(controller)
    world.away = True
    for slot in world.slots.values():
        slot.alive = False
    await controller.begin(controller.parts.supervisor.lose_node(NODE))
    for info in (one, two):
        told = await controller.parts.sandboxes.get(info.id, INSIDE)
        assert (told.state, told.reason) == (State.STOPPED, Reason.NODE_LOST)
    ended = await controller.begin(controller.parts.sandboxes.terminate(one.id, INSIDE))
    assert ended.reason is Reason.TERMINATED
    assert controller.parts.sandboxes.orphans([one.id, two.id], NODE) == [one.id], "its node removes it once it is back"
    world.containers.pop(one.id)
    world.put_away(two.id)
    world.away = False
    await start(controller, two.id)
    await end(world, controller, two.id)


async def test_a_node_that_is_drained_stops_it_and_a_cordoned_one_does_not_start_it() -> None:
    world = World()
    controller = await world.controller()
    info = await created(controller, restart="always")
    record = controller.parts.registry.get(info.id)
    assert record is not None
    controller.parts.nodes.cordons[NODE] = Cordon(NODE, "repairs", "tk-1", 0.0)
    await controller.begin(controller.parts.supervisor.evict(record, "its node was drained", ANN))
    assert (record.info.state, record.info.reason) == (State.STOPPED, Reason.EVICTED)
    await until(lambda: record.life.phase is Phase.STOPPED, "its slot is free")
    controller.parts.starting.restart_due([record], time.time() + 60)
    assert record.state is State.STOPPED
    with pytest.raises(FailedPrecondition) as caught:
        await start(controller, info.id)
    assert caught.value.state == "stopped"
    await until(lambda: record.life.phase is Phase.STOPPED, "it is stopped again")
    controller.parts.nodes.cordons.clear()
    await start(controller, info.id)
    await end(world, controller, info.id)


async def test_waking_starts_it_once_and_only_where_it_may() -> None:
    world = World()
    controller = await world.controller()
    info, shy = await created(controller), await created(controller, autostart=False)
    for each in (info, shy):
        await stop(controller, each.id)
    starting = controller.parts.starting
    grants = await asyncio.gather(*(controller.begin(starting.wake(info.id, DEADLINE_S)) for _ in range(20)))
    assert {grant.sandbox_id for grant in grants} == {info.id}
    assert world.starts.count(info.id) == 2
    with pytest.raises(FailedPrecondition) as caught:
        await controller.begin(starting.wake(shy.id, DEADLINE_S))
    assert caught.value.state == "stopped"
    await controller.kill()


@pytest.mark.parametrize("killed_after", range(0, STEPS, 2))
async def test_a_controller_killed_while_it_stops(killed_after: int) -> None:
    world = World()
    first = await world.controller()
    info = await created(first)
    stopping = first.begin(first.parts.starting.stop(info.id, ANN))
    await steps(killed_after)
    told = stopping.done()
    await first.kill()
    asked = world.disk.row(info.id)["stopping"] is not None or world.disk.row(info.id)["state"] == "stopped"
    second = await world.controller()
    record = second.parts.registry.get(info.id)
    assert record is not None
    if asked:
        await until(lambda: record.state is State.STOPPED, "it stops, though nobody asked again")
    else:
        assert not told
    assert (await stop(second, info.id)).reason is Reason.STOPPED
    assert [*world.stopped] == [info.id]
    assert not world.containers
    await start(second, info.id)
    await end(world, second, info.id)


@pytest.mark.parametrize("start_s", [0.0, 0.002])
@pytest.mark.parametrize("killed_after", range(0, STEPS, 2))
async def test_a_controller_killed_while_it_starts_again(killed_after: int, start_s: float) -> None:
    world = World()
    first = await world.controller()
    info = await created(first)
    await stop(first, info.id)
    world.start_s = start_s
    first.begin(first.parts.starting.start(info.id, DEADLINE_S, ANN))
    await steps(killed_after)
    await first.kill()
    second = await world.controller()
    assert (await start(second, info.id)).state is State.RUNNING
    assert {*world.containers} == {info.id}
    assert not world.stopped
    await end(world, second, info.id)


@pytest.mark.parametrize("killed_after", range(0, STEPS, 2))
async def test_a_stopped_one_that_is_to_end_while_the_controller_is_killed(killed_after: int) -> None:
    world = World()
    first = await world.controller()
    info = await created(first)
    await stop(first, info.id)
    first.begin(first.parts.sandboxes.terminate(info.id, ANN))
    await steps(killed_after)
    await first.kill()
    second = await world.controller()
    await end(world, second, info.id)


@pytest.mark.parametrize("while_", ["stopping", "starting"])
@pytest.mark.parametrize("after", range(0, STEPS, 4))
async def test_a_slot_that_dies_and_ends_that_come_in_between(after: int, while_: str) -> None:
    for ask_for_end in (False, True):
        world = World(start_s=0.002, remove_s=0.001)
        controller = await world.controller()
        info = await created(controller)
        if while_ == "starting":
            await stop(controller, info.id)
        starting = controller.parts.starting
        work = controller.begin(
            starting.stop(info.id, ANN) if while_ == "stopping" else starting.start(info.id, DEADLINE_S, ANN)
        )
        await steps(after)
        if ask_for_end:
            await controller.begin(controller.parts.sandboxes.terminate(info.id, INSIDE))
        else:
            for slot in world.slots.values():
                slot.die()
        await asyncio.wait([work], timeout=DEADLINE_S)
        work.exception()
        if not ask_for_end:
            assert (await stop(controller, info.id)).state is State.STOPPED
            assert not world.containers
            await start(controller, info.id)
        await end(world, controller, info.id)


async def test_shutting_down_keeps_it_and_the_next_cluster_starts_it_if_it_shall() -> None:
    world = World()
    first = await world.controller()
    always, no = await created(first, restart="always"), await created(first)
    asked = await created(first, restart="always")
    await stop(first, asked.id)
    await first.begin(first.parts.drain())
    assert {*world.stopped} == {always.id, no.id, asked.id}
    assert not world.containers
    await first.kill()
    for slot in world.slots.values():
        slot.alive = False
    second = await world.controller()
    record = second.parts.registry.get(always.id)
    assert record is not None
    await until(lambda: record.state is State.RUNNING, "it starts with the cluster")
    for each, reason in ((no, Reason.SHUTDOWN), (asked, Reason.STOPPED)):
        told = await second.parts.sandboxes.get(each.id, INSIDE)
        assert (told.state, told.reason) == (State.STOPPED, reason)
    await second.kill()


async def test_one_that_fails_starts_again_by_itself_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "FIRST_S", 0.0)
    world = World()
    controller = await world.controller()
    info = await created(controller, restart="on-failure")
    record = controller.parts.registry.get(info.id)
    assert record is not None
    for times in (1, 2):
        await until(lambda: record.state is State.RUNNING, "it runs")
        world.end(info.id, 1, kept=True)
        await until(lambda: record.state is State.STOPPED, "it stops")
        controller.parts.starting.restart_due(controller.parts.registry.resting(), record.stop.ended_at + 9)
        await until(lambda times=times: record.restarts == times, "it starts again")  # type: ignore[misc]
    monkeypatch.setattr(restarts, "FIRST_S", 99.0)
    await until(lambda: record.state is State.RUNNING, "it runs")
    world.end(info.id, 1, kept=True)
    await until(lambda: record.state is State.STOPPED, "it stops")
    assert (await stop(controller, info.id)).reason is Reason.STOPPED
    assert restarts.due_at(record) is None
    await end(world, controller, info.id)


@pytest.mark.parametrize(
    ("policy", "reason", "code", "again"),
    [
        ("no", Reason.COMPLETED, 1, False),
        ("on-failure", Reason.COMPLETED, 0, False),
        ("on-failure", Reason.COMPLETED, 1, True),
        ("on-failure", Reason.OUT_OF_MEMORY, None, True),
        ("on-failure", Reason.EVICTED, None, True),
        ("on-failure", Reason.NODE_LOST, None, True),
        ("on-failure", Reason.SHUTDOWN, None, False),
        ("on-failure", Reason.STOPPED, None, False),
        ("always", Reason.COMPLETED, 0, True),
        ("always", Reason.SHUTDOWN, None, True),
        ("always", Reason.IDLE_TIMEOUT, None, False),
        ("always", Reason.TIMEOUT, None, False),
        ("always", Reason.OUT_OF_DISK, None, False),
        ("always", Reason.STOPPED, None, False),
    ],
)
def test_what_starts_it_again(policy: Restart, reason: Reason, code: int | None, again: bool) -> None:
    assert restarts.wanted(policy, End(reason, code, "", 0.0, kept=True)) is again


def test_each_start_in_a_row_waits_longer_up_to_a_bound() -> None:
    pauses = [restarts.pause(n, Reason.COMPLETED) for n in (*range(12), 10**6)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[1], pauses[-1]) == (1.0, 2.0, 300.0)
    assert restarts.pause(5, Reason.SHUTDOWN) == 0.0
    assert (restarts.count(4, 59.0), restarts.count(4, 60.0), restarts.count(4, None)) == (4, 0, 4)


def test_a_row_of_an_earlier_version_is_read() -> None:
    row = to_row(SandboxRecord("sb-1", spec(), 1.0, {}))
    for name in ("home", "stopping", "stop", "restarts"):
        del row[name]
    for name in ("persistent", "restart", "autostart"):
        row["spec"] = {key: value for key, value in row["spec"].items() if key != name}
    record = from_row(row)
    assert (record.home, record.stop, record.restarts, record.spec.persistent) == (None, None, 0, False)
