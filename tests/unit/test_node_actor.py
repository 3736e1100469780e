"""The node actor: what fails once is made good later, and a start that fails leaves this process as it was."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator

import pytest

from shoal.actors.engines.contract import Ability, ContainerState
from shoal.actors.engines.fake import EngineBroken, EngineDown, EngineStuck
from shoal.actors.node import prepared
from shoal.actors.node.records import Stage
from shoal.model import tracing
from shoal.model.errors import FailedPrecondition, NotFound, ShoalError, Unavailable
from tests.otlp import receiver
from tests.processes import relay_pid
from tests.unit.builders import spec
from tests.unit.node_world import Machine, machine

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

WITHIN_S = 20.0
"""How long a test waits for what is to happen: only one that fails waits so long."""

SHAPE = spec().container_shape


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    async with machine(monkeypatch) as made:
        yield made


async def test_what_is_prepared_for_nobody_goes_though_one_removal_fails(place: Machine) -> None:
    parts = await place.parts()
    for number in range(3):
        await place.node.prepare_container(f"slot-{number}", SHAPE)
    assert (await place.node.info()).warm == 3
    place.engine.inject(EngineBroken("remove"))
    await place.node._sweep(parts)  # no such slot is to be found
    assert (await place.node.info()).warm == 3, "it may have died just now, with a sandbox in it"
    for _ in range(2):
        await place.node._sweep(parts)
    assert parts.containers.records == place.engine.containers == {}


async def test_a_start_is_part_of_its_callers_trace(place: Machine) -> None:
    with receiver() as seen:
        tracing.start(seen.url, "node", names={})
        try:
            carrier = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "sandbox_id": "sb-1", "request_id": "rq-1"}
            await asyncio.create_task(place.node.carry(carrier, "start_container", ("sb-1", spec())))
        finally:
            await asyncio.to_thread(tracing.stop)
        spans = {span.name: span for span in seen.spans}
        start = spans["start_container"]
        assert (start.trace_id, start.parent_id) == ("a" * 32, "b" * 16)
        assert start.attributes["shoal.sandbox_id"] == "sb-1"
        assert {spans[name].parent_id for name in ("image", "container")} == {start.span_id}


async def test_a_slot_has_one_prepared_container_however_often_it_asks(place: Machine) -> None:
    place.add_slot("slot-1")
    asked = await asyncio.gather(*(place.node.prepare_container("slot-1", SHAPE) for _ in range(3)))
    again = await place.node.prepare_container("slot-1", SHAPE)
    assert {started.key for started in (*asked, again)} == set(place.engine.containers)
    other = await place.node.prepare_container("slot-1", spec(hostname="other").container_shape)
    assert set(place.engine.containers) == {other.key} != {again.key}


async def test_a_prepared_container_outlives_the_node_actor_and_is_given_to_one_sandbox(place: Machine) -> None:
    place.add_slot("slot-1")
    started = await place.node.prepare_container("slot-1", SHAPE)
    await place.restart()
    for _ in range(2):
        assert (await place.node.assign_container(started.key, "sb-1")).key == started.key
    with pytest.raises(NotFound):
        await place.node.assign_container(started.key, "sb-2")
    assert (await place.node.container_of("sb-1")).key == started.key
    await place.node.release_containers(["slot-1"])
    assert set(place.engine.containers) == {started.key}, "it is the sandbox's by now"
    await place.restart()
    assert (await place.node.container_of("sb-1")).key == started.key


async def test_the_sweep_keeps_what_a_slot_knows_of_and_removes_what_it_does_not(
    place: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slot in ("slot-1", "slot-2"):
        place.add_slot(slot)
    parts = await place.parts()
    known, unknown = [await place.node.prepare_container(slot, SHAPE) for slot in ("slot-1", "slot-2")]
    await place.node._sweep(parts)
    assert set(place.engine.containers) == {known.key, unknown.key}, "the slot may not have heard of it yet"
    monkeypatch.setattr(prepared, "_SETTLED_S", 0.0)
    place.add_slot("slot-1", known.key)
    for _ in range(2):
        await place.node._sweep(parts)
    assert set(place.engine.containers) == {known.key}


async def test_what_a_slot_has_given_away_before_it_died_outlives_the_next_sweep(place: Machine) -> None:
    parts = await place.parts()
    started = await place.node.prepare_container("slot-1", SHAPE)
    await place.node._sweep(parts)
    await place.node.assign_container(started.key, "sb-1")  # as who adopts the sandbox does
    await place.node._sweep(parts)
    assert (await place.node.container_of("sb-1")).key == started.key


async def test_a_release_waits_for_what_is_being_prepared(place: Machine) -> None:
    stuck = EngineStuck("start")
    await place.parts()
    place.engine.inject(stuck)
    preparing = asyncio.create_task(place.node.prepare_container("slot-1", SHAPE))
    await asyncio.wait_for(stuck.reached.wait(), WITHIN_S)
    releasing = asyncio.create_task(place.node.release_containers(["slot-1"]))
    stuck.let_go.set()
    await asyncio.wait_for(asyncio.gather(preparing, releasing), WITHIN_S)
    assert place.engine.containers == {}


async def test_closing_takes_away_what_it_can_and_tells_what_is_left(
    place: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = await place.parts()
    kept, _ = [await parts.containers.start(SHAPE, None) for _ in range(2)]
    remove, refused = place.engine.remove, {kept.key}

    async def refuse(key: str) -> None:
        if key in refused:
            raise Unavailable("the engine took too long to answer")
        await remove(key)

    monkeypatch.setattr(place.engine, "remove", refuse)
    with pytest.raises(Unavailable, match=kept.key):
        await place.node.close()
    assert [*place.engine.containers] == [kept.key]
    assert place.net.attached.keys() == set(), "the network is closed"
    with pytest.raises(Unavailable):
        await parts.relay.ask({"op": "info"})
    refused.clear()


async def test_what_was_half_made_is_not_given_to_a_slot_though_it_is_still_there(place: Machine) -> None:
    class Twice(EngineBroken):
        async def happen(self) -> None:
            place.engine.inject(EngineBroken("remove"))
            await super().happen()

    place.add_slot("slot-1")
    parts = await place.parts()
    half, whole = [await parts.containers.start(SHAPE, None, f"slot-{number}") for number in range(2)]
    await parts.containers.files.put(half.but(stage=Stage.MAKING))
    await place.restart()
    place.fault = Twice("remove")
    parts = await place.parts()
    assert set(parts.containers.records) == {half.key, whole.key}
    assert (await place.node.prepare_container("slot-0", SHAPE)).key not in (half.key, whole.key)
    assert (await place.node.prepare_container("slot-1", SHAPE)).key == whole.key


async def test_a_start_after_one_that_could_not_be_undone_leaves_one_container(place: Machine) -> None:
    parts = await place.parts()
    place.net.broken = True
    place.engine.inject(EngineBroken("remove"))
    with pytest.raises(Unavailable, match="no more addresses"):
        await place.node.start_container("sb-1", spec())
    place.net.broken = False
    started = await place.node.start_container("sb-1", spec())
    assert list(place.engine.containers) == list(parts.containers.records) == [started.key]
    assert (await place.node.container_of("sb-1")).key == started.key


async def test_a_container_that_is_half_removed_is_not_given_again(place: Machine) -> None:
    parts = await place.parts()
    first = await place.node.start_container("sb-1", spec())
    place.engine.inject(EngineBroken("remove"))
    with pytest.raises(ShoalError):
        await place.node.remove_container(first.key)
    with pytest.raises(NotFound):
        await place.node.container_of("sb-1")
    second = await place.node.start_container("sb-1", spec())
    assert list(place.engine.containers) == list(parts.containers.records) == [second.key] != [first.key]


async def test_a_node_that_fails_to_open_holds_nothing_and_finds_its_relay_again(
    place: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_RUN_DIR", str(place.run_dir))
    held: list[tuple[int, int]] = []
    relays = set()
    gc.collect()  # what earlier tests left may hold descriptors
    for _ in range(4):
        place.fault = EngineDown("list")
        with pytest.raises(Unavailable, match="engine"):
            await place.node.info()
        relays.add(await asyncio.to_thread(relay_pid))
        held.append((len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))))
    assert not any(engine._open for engine in place.engines)
    assert len(relays) == 1
    assert None not in relays
    assert all(tasks <= held[1][0] and descriptors <= held[1][1] for tasks, descriptors in held[2:]), held
    await place.node.info()
    assert await asyncio.to_thread(relay_pid) in relays, "it was not ended: it carries what runs"


KEPT = spec(persistent=True)


async def test_a_persistent_sandbox_is_stopped_started_again_and_found_after_a_restart(place: Machine) -> None:
    first = await place.node.start_container("sb-1", KEPT)
    before = place.engine.containers[first.key].container
    await place.node.stop_sandbox("sb-1")
    await place.node.stop_container(first.key)
    assert place.engine.containers[first.key].container.state is ContainerState.EXITED
    assert place.net.attached == {}
    info = await place.node.info()
    assert (info.sandboxes, info.stopped) == (0, 1)
    with pytest.raises(NotFound):
        await place.node.container_of("sb-1")
    await place.restart()
    again = await place.node.restart_container("sb-1")
    assert (again.key, again.machine) == (first.key, info.machine)
    after = place.engine.containers[first.key].container
    assert after.state is ContainerState.RUNNING
    assert after.pid != before.pid
    assert place.net.attached == {first.key: after.pid}
    assert await place.node.restart_container("sb-1") == await place.node.container_of("sb-1")
    with pytest.raises(NotFound):
        await place.node.restart_container("sb-2")


@pytest.mark.parametrize("network", [True, False])
async def test_a_persistent_sandbox_that_does_not_start_again_is_stopped(place: Machine, network: bool) -> None:
    first = await place.node.start_container("sb-1", KEPT)
    await place.node.stop_sandbox("sb-1")
    place.net.broken = network
    if not network:
        place.engine.inject(EngineBroken("restart"))
    with pytest.raises(ShoalError):
        await place.node.restart_container("sb-1")
    assert place.engine.containers[first.key].container.state is ContainerState.EXITED
    place.net.broken = False
    await place.node.restart_container("sb-1")


async def test_a_stop_that_was_cut_short_is_finished(place: Machine) -> None:
    first = await place.node.start_container("sb-1", KEPT)
    place.engine.inject(EngineDown("stop"))
    with pytest.raises(Unavailable):
        await place.node.stop_sandbox("sb-1")
    assert place.engine.containers[first.key].container.state is ContainerState.RUNNING
    await place.restart()
    await place.node.info()
    assert place.engine.containers[first.key].container.state is ContainerState.EXITED


async def test_closing_keeps_persistent_sandboxes_and_removing_one_leaves_nothing(place: Machine) -> None:
    first = await place.node.start_container("sb-1", KEPT)
    await place.node.start_container("sb-2", spec())
    await place.node.close()
    assert place.engine.containers.keys() == {first.key}
    assert place.engine.containers[first.key].container.state is ContainerState.EXITED
    assert (await place.node.info()).stopped == 1
    await place.node.remove_sandbox("sb-1")
    assert place.engine.containers == (await place.parts()).containers.records == {}


async def test_a_machine_that_joins_again_stops_what_no_slot_holds_any_more(place: Machine) -> None:
    kept = await place.node.start_container("sb-1", KEPT)
    await place.restart()
    assert (await place.node.container_of("sb-1")).key == kept.key, "only the node actor was started anew"
    place.node._node_id = "node-2"
    await place.restart()
    assert (await place.node.info()).stopped == 1
    assert place.engine.containers[kept.key].container.state is ContainerState.EXITED


async def test_a_node_obeys_the_latest_controller_alone(place: Machine) -> None:
    for epoch in (1, 3, 3):
        await place.node.info(epoch)
    with pytest.raises(FailedPrecondition) as refused:
        await place.node.info(2)
    assert refused.value.state == "overtaken"


async def test_a_suspended_sandbox_goes_on_and_a_start_that_comes_to_nothing_keeps_its_memory(place: Machine) -> None:
    await place.parts()
    place.engine.abilities |= {Ability.CHECKPOINT}
    first = await place.node.start_container("sb-1", KEPT)
    container = place.engine.containers[first.key]
    place.engine.inject(EngineBroken("suspend"))
    with pytest.raises(ShoalError):
        await place.node.suspend_sandbox("sb-1")
    assert (container.container.state, place.net.attached.keys()) == (ContainerState.RUNNING, {first.key})
    await place.node.suspend_sandbox("sb-1")
    await place.node.suspend_sandbox("sb-1")
    assert (container.container.state, container.memory, place.net.attached) == (ContainerState.EXITED, True, {})
    for fault in (EngineBroken("restart"), EngineBroken("forget_memory")):
        place.engine.inject(fault)
        with pytest.raises(ShoalError):
            await place.node.restart_container("sb-1")
        assert (container.container.state, container.memory) == (ContainerState.EXITED, True)
    assert (await place.node.restart_container("sb-1")).resumed
    assert not container.memory, "what it does from now on is newer"
    assert await place.node.undo_restart("sb-1")
    assert (container.container.state, container.memory) == (ContainerState.EXITED, True)
    await place.node.forget_memory("sb-1")
    assert not (await place.node.restart_container("sb-1")).resumed
