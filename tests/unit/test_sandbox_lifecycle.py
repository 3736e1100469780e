"""A sandbox's life in its slot, over a real node: whatever fails, it ends, and the slot takes the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from shoal.actors.engines.fake import EngineBroken, EngineRefuses, EngineStuck, Failure
from shoal.actors.messages import OCCUPIED
from shoal.actors.node import prepared as prepared_by_node
from shoal.actors.sandbox import actor as slot_module
from shoal.actors.sandbox import lifecycle as lifecycle_module
from shoal.actors.sandbox import prepared as prepared_module
from shoal.actors.sandbox.actor import SandboxActor
from shoal.actors.sandbox.lifecycle import SandboxLifecycle
from shoal.model import tasks
from shoal.model.errors import FailedPrecondition, ImageNotFound, Internal, SandboxNotFound, ShoalError, Unavailable
from shoal.model.spec import SlotShape
from shoal.model.states import Reason
from tests.unit.builders import spec
from tests.unit.node_world import Handle, Machine, machine

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

WITHIN_S = 20.0
"""How long a test waits for what is to happen: only one that fails waits so long."""


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    async with machine(monkeypatch) as made:
        yield made


@pytest.fixture
def slot(place: Machine, monkeypatch: pytest.MonkeyPatch) -> SandboxActor:
    monkeypatch.setattr(slot_module, "find_actor", lambda name: place.handle)
    monkeypatch.setattr(slot_module, "write_logs", lambda *args: None)  # the log is this process's own
    return SandboxActor("slot-1", SlotShape(0.125, 128), grace_s=0.0)


async def begun(place: Machine, *command: str) -> SandboxLifecycle:
    """A sandbox that runs."""
    await place.node.start_container("sb-1", spec())
    life = SandboxLifecycle("sb-1", spec(command=command), place.handle, grace_s=0.0)
    await life.adopt(time.time())
    return life


@pytest.mark.parametrize(
    "failure", [EngineBroken("remove"), EngineRefuses("remove", Unavailable("the engine took too long to answer"))]
)
async def test_a_sandbox_ends_though_its_container_could_not_be_removed_at_first(
    place: Machine, failure: Failure
) -> None:
    life = await begun(place)
    place.engine.inject(failure)
    life.give_up(Reason.TERMINATED, None, "on request")
    end = await asyncio.wait_for(life.ended(), WITHIN_S)
    assert (end.reason, end.message) == (Reason.TERMINATED, "on request")
    assert place.engine.containers == {}


async def test_a_sandbox_ends_though_ending_its_command_shows_a_defect(
    place: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Agent:
        connection = SimpleNamespace(close=lambda: None)

        async def wait(self, process_id: str) -> None:
            await asyncio.Event().wait()

        async def signal(self, process_id: str, number: int, tree: bool) -> None:
            raise KeyError(process_id)

    async def reconnect(life: SandboxLifecycle) -> Agent:
        return Agent()

    monkeypatch.setattr(SandboxLifecycle, "_reconnect", reconnect)
    life = await begun(place, "sleep", "9")
    life.give_up(Reason.TERMINATED, None, "on request")
    assert (await asyncio.wait_for(life.ended(), WITHIN_S)).reason is Reason.TERMINATED
    assert place.engine.containers == {}


@pytest.mark.parametrize("error", [Internal("a defect"), Unavailable("the actor is being restarted")])
async def test_a_loss_is_noticed_though_the_node_failed_before(place: Machine, error: ShoalError) -> None:
    place.handle.failures["watch_container"] = [error]
    life = await begun(place)
    (key,) = place.engine.containers
    place.engine.end(key, out_of_memory=True)
    end = await asyncio.wait_for(life.ended(), WITHIN_S)
    assert (end.reason, end.returncode) == (Reason.OUT_OF_MEMORY, 137)


@pytest.mark.parametrize("watch", ["_watch_container", "_watch_agent", "_watch_deadline"])
async def test_a_sandbox_ends_whose_watch_fails_in_a_way_that_nobody_foresaw(
    place: Machine, monkeypatch: pytest.MonkeyPatch, watch: str
) -> None:
    async def defect(*args: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(tasks, "PAUSES_S", (0.001, 0.001))
    monkeypatch.setattr(SandboxLifecycle, watch, defect)
    life = await begun(place)
    end = await asyncio.wait_for(life.ended(), WITHIN_S)
    assert end.reason is Reason.EVICTED
    assert place.engine.containers == {}


async def test_a_watch_that_fails_once_goes_on(place: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = SandboxLifecycle._watch_container
    failed = asyncio.Event()

    async def defect_at_first(life: SandboxLifecycle) -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("the transport is closed")
        await watch(life)

    monkeypatch.setattr(SandboxLifecycle, "_watch_container", defect_at_first)
    life = await begun(place)
    (key,) = place.engine.containers
    await failed.wait()
    place.engine.end(key, out_of_memory=True)
    end = await asyncio.wait_for(life.ended(), WITHIN_S)
    assert end.reason is Reason.OUT_OF_MEMORY


async def test_a_sandbox_ends_though_removing_its_container_shows_a_defect_at_first(
    place: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = SandboxLifecycle._let_go
    defects = [KeyError("a defect")]

    async def defect_at_first(life: SandboxLifecycle, method: str) -> None:
        if defects:
            raise defects.pop()
        await let_go(life, method)

    monkeypatch.setattr(SandboxLifecycle, "_let_go", defect_at_first)
    life = await begun(place)
    life.give_up(Reason.TERMINATED, None, "on request")
    end = await asyncio.wait_for(life.ended(), WITHIN_S)
    assert end.reason is Reason.TERMINATED
    assert place.engine.containers == {}


async def test_a_start_that_failed_says_why_whatever_else_fails(place: Machine) -> None:
    place.handle.failures["remove_sandbox"] = [Internal("a defect")]
    with pytest.raises(ImageNotFound):
        await SandboxLifecycle("sb-1", spec(image="none/such"), place.handle, grace_s=0.0).start()


async def test_all_who_wait_for_a_start_are_told_why_it_failed(slot: SandboxActor) -> None:
    wanted = spec(image="none/such")
    told = await asyncio.gather(*(slot.start("sb-1", wanted) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in told] == [ImageNotFound] * 3
    assert (await slot.describe()).sandbox_id is None


async def test_a_start_that_failed_with_nobody_waiting_leaves_the_slot_free(place: Machine, slot: SandboxActor) -> None:
    await place.node.start_container("sb-2", spec())
    stuck = EngineStuck("image")
    place.engine.inject(stuck)
    start = asyncio.create_task(slot.start("sb-1", spec(image="none/such")))
    await asyncio.wait_for(stuck.reached.wait(), WITHIN_S)
    start.cancel()
    await asyncio.wait([start])
    beginning = slot._start_task
    assert beginning is not None
    stuck.let_go.set()
    await asyncio.wait([beginning], timeout=WITHIN_S)
    assert (await slot.adopt("sb-2", spec(), time.time())).node_id
    assert (await slot.terminate("sb-2", "on request")).reason is Reason.TERMINATED
    await slot.wipe("sb-2")


@pytest.mark.parametrize(
    ("reason", "kept"), [(Reason.STOPPED, True), (Reason.IDLE_TIMEOUT, True), (Reason.TERMINATED, False)]
)
async def test_a_persistent_sandbox_ends_only_on_request(place: Machine, reason: Reason, kept: bool) -> None:
    await place.node.start_container("sb-1", spec(persistent=True))
    life = SandboxLifecycle("sb-1", spec(persistent=True), place.handle, grace_s=0.0)
    await life.adopt(time.time())
    life.give_up(reason, None, "")
    end = await asyncio.wait_for(life.ended(), WITHIN_S)
    assert (end.reason, end.kept) == (reason, kept)
    assert len(place.engine.containers) == kept
    assert place.net.attached == {}


class Agent:
    """The agent of a prepared container. `told`: what it was configured with; `broken`: its connection is."""

    def __init__(self) -> None:
        self.told: list[dict[str, object]] = []
        self.broken = False
        self.connection = SimpleNamespace(closed=False)
        self.connection.close = lambda: setattr(self.connection, "closed", True)

    async def configure(self, **defaults: object) -> None:
        if self.broken:
            raise Unavailable("the connection broke")
        self.told.append(defaults)


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> list[Agent]:
    """All that were connected to."""
    made: list[Agent] = []

    async def connect(started: object, wait_s: float) -> Agent:
        made.append(Agent())
        return made[-1]

    monkeypatch.setattr(prepared_module, "connect", connect)
    monkeypatch.setattr(lifecycle_module, "connect", connect)
    return made


SHAPE = spec().container_shape
RESTARTING = Unavailable("the node is being restarted", actor="restarting")


async def test_a_sandbox_takes_the_prepared_container_and_its_agent_learns_the_rest(
    place: Machine, slot: SandboxActor, agents: list[Agent]
) -> None:
    place.add_slot("slot-1")
    await asyncio.gather(slot.prepare(SHAPE, "dev/pool"), slot.prepare(SHAPE, "dev/pool"))
    facts = await slot.describe()
    assert (facts.sandbox_id, facts.prepared, facts.pool) == (None, SHAPE, "dev/pool")
    (key,) = place.engine.containers
    unready = asyncio.create_task(slot.unready())
    await asyncio.sleep(0)
    started = await slot.start("sb-1", spec(env={"A": "1"}, workdir="/w", user="ann"))
    assert (started.key, started.warm, facts.key) == (key, True, key)
    assert [agent.told for agent in agents] == [[{"env": {"A": "1"}, "workdir": "/w", "user": "ann"}]]
    assert await unready == ""
    assert (await slot.describe()).prepared is None
    with pytest.raises(FailedPrecondition) as caught:
        await slot.prepare(SHAPE, "")
    assert caught.value.fields["state"] == OCCUPIED
    await slot.terminate("sb-1", "on request")
    assert place.engine.containers == {}


async def test_a_sandbox_need_not_wait_for_its_node_which_is_told_for_as_long_as_it_takes(
    place: Machine, slot: SandboxActor, agents: list[Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.add_slot("slot-1")
    key = (await slot.prepare(SHAPE, "")).key
    place.handle.failures["assign_container"] = [RESTARTING]
    starting = asyncio.create_task(slot.start("sb-1", spec(user="ann")))
    while not starting.done():
        assert (await slot.describe()).key == key, "or its node might take it for nobody's"
        await asyncio.sleep(0)
    parts = await place.parts()
    assert parts.containers.of_sandbox("sb-1") is None
    place.slots["slot-1"] = Handle(slot)
    monkeypatch.setattr(prepared_by_node, "_SETTLED_S", 0.0)
    await place.node._sweep(parts)
    await asyncio.wait_for(place.node.pause_sandbox("sb-1"), WITHIN_S)  # which waits until it is told
    assert parts.containers.need("sb-1").key == key
    await place.node.resume_sandbox("sb-1")
    await slot.terminate("sb-1", "on request")
    assert place.engine.containers == {}


async def test_a_sandbox_that_ends_before_its_node_is_told_leaves_nothing(
    place: Machine, slot: SandboxActor, agents: list[Agent]
) -> None:
    place.add_slot("slot-1")
    started = await slot.prepare(SHAPE, "")
    place.handle.failures["assign_container"] = [RESTARTING]
    end = asyncio.create_task(slot.hold("sb-1", spec(), time.time(), started.key))
    assert await place.node.end_container(started.key, "sb-1")
    assert (await asyncio.wait_for(end, WITHIN_S)).reason is Reason.TERMINATED
    meter = (await place.parts()).usage.meter
    async with asyncio.timeout(WITHIN_S):
        while not meter.knows("sb-1"):  # noqa: ASYNC110 - what it has used counts, and nobody waits for that
            await asyncio.sleep(0.01)
    await asyncio.wait_for(slot.wipe("sb-1"), WITHIN_S)
    await place.node.remove_container(started.key)
    assert (place.engine.containers, (await place.parts()).containers.records) == ({}, {})


async def test_a_slot_that_dies_before_its_node_is_told_is_replaced(
    place: Machine, slot: SandboxActor, agents: list[Agent]
) -> None:
    place.add_slot("slot-1")
    started = await slot.prepare(SHAPE, "")
    place.handle.failures["assign_container"] = [RESTARTING]
    end = asyncio.create_task(slot.hold("sb-1", spec(), time.time(), started.key))
    another = SandboxActor("slot-2", SlotShape(0.125, 128), grace_s=0.0)
    assert (await another.adopt("sb-1", spec(), time.time(), started.key)).key == started.key
    assert (await place.node.container_of("sb-1")).key == started.key
    for held in (another, slot):
        await held.terminate("sb-1", "on request")
    assert (await end).reason is Reason.TERMINATED
    assert place.engine.containers == {}


async def test_a_slot_is_told_of_a_sandbox_that_has_its_prepared_container(
    place: Machine, slot: SandboxActor, agents: list[Agent]
) -> None:
    place.add_slot("slot-1")
    started = await slot.prepare(SHAPE, "")
    with pytest.raises(SandboxNotFound):
        await slot.hold("sb-1", spec(), time.time(), "another container")
    ends = [asyncio.create_task(slot.hold("sb-1", spec(), time.time(), started.key)) for _ in range(2)]
    while not agents[0].connection.closed:  # noqa: ASYNC110 - nobody waits for that
        await asyncio.sleep(0)
    with pytest.raises(SandboxNotFound):
        await slot.hold("sb-2", spec(), time.time(), started.key)
    facts = await slot.describe()
    assert (facts.sandbox_id, facts.prepared, facts.key) == ("sb-1", None, started.key)
    assert agents[0].told == [], "it has all that its agent could tell"
    parts = await place.parts()
    async with asyncio.timeout(WITHIN_S):
        while parts.containers.of_sandbox("sb-1") is None:  # noqa: ASYNC110 - nobody waits for that
            await asyncio.sleep(0.01)
    place.engine.end(started.key, out_of_memory=True)
    ended = await asyncio.wait_for(asyncio.gather(*ends), WITHIN_S)
    assert {end.reason for end in ended} == {Reason.OUT_OF_MEMORY}
    await slot.wipe("sb-1")
    await slot.prepare(SHAPE, "")


async def test_a_sandbox_that_was_given_a_container_ends_with_it(
    place: Machine, slot: SandboxActor, agents: list[Agent]
) -> None:
    place.add_slot("slot-1")
    started = await slot.prepare(SHAPE, "")
    place.engine.end(started.key)
    assert await asyncio.wait_for(slot.unready(), WITHIN_S)
    end = await asyncio.wait_for(slot.hold("sb-1", spec(), time.time(), started.key), WITHIN_S)
    assert end.reason is Reason.EVICTED, "it may have been used: another container would not have what it wrote"
    await slot.wipe("sb-1")
    await slot.prepare(SHAPE, "")
    assert len(place.engine.containers) == 1


async def test_a_sandbox_of_another_shape_gets_a_container_of_its_own(
    place: Machine, slot: SandboxActor, agents: list[Agent]
) -> None:
    place.add_slot("slot-1")
    await slot.prepare(SHAPE, "")
    (prepared,) = place.engine.containers
    started = await slot.start("sb-1", spec(hostname="other"))
    assert (started.key != prepared, started.warm) == (True, False)
    for _ in range(1000):
        if prepared not in place.engine.containers:
            break
        await asyncio.sleep(0.01)
    assert set(place.engine.containers) == {started.key}
    await slot.terminate("sb-1", "on request")


async def test_a_prepared_container_that_died_is_told_and_costs_a_sandbox_only_time(
    place: Machine, slot: SandboxActor, agents: list[Agent]
) -> None:
    place.add_slot("slot-1")
    await slot.prepare(SHAPE, "")
    (prepared,) = place.engine.containers
    place.engine.end(prepared, out_of_memory=True)
    assert await asyncio.wait_for(slot.unready(), WITHIN_S)
    started = await slot.start("sb-1", spec())
    assert started.warm is False
    await slot.terminate("sb-1", "on request")
    await slot.wipe("sb-1")
    await slot.prepare(SHAPE, "")
    assert len(place.engine.containers) == 1
    await slot.release()
    assert place.engine.containers == {}


async def test_a_sandbox_connects_anew_where_the_relay_was_restarted(
    place: Machine, slot: SandboxActor, agents: list[Agent]
) -> None:
    place.add_slot("slot-1")
    await slot.prepare(SHAPE, "")
    agents[0].broken = True
    started = await slot.start("sb-1", spec(env={"A": "1"}))
    assert started.warm is True
    assert [len(agent.told) for agent in agents] == [0, 1]
    await slot.terminate("sb-1", "on request")


async def test_a_start_joins_what_is_still_being_prepared(
    place: Machine, slot: SandboxActor, agents: list[Agent]
) -> None:
    place.add_slot("slot-1")
    await place.parts()
    stuck = EngineStuck("start")
    place.engine.inject(stuck)
    preparing = asyncio.create_task(slot.prepare(SHAPE, ""))
    await asyncio.wait_for(stuck.reached.wait(), WITHIN_S)
    starting = asyncio.create_task(slot.start("sb-1", spec()))
    await asyncio.sleep(0.05)
    stuck.let_go.set()
    started = await asyncio.wait_for(starting, WITHIN_S)
    await preparing
    assert set(place.engine.containers) == {started.key}
    assert started.warm
    await slot.terminate("sb-1", "on request")


async def test_what_cannot_be_prepared_says_why_and_leaves_the_slot_free(place: Machine, slot: SandboxActor) -> None:
    with pytest.raises(ImageNotFound):
        await slot.prepare(spec(image="none/such").container_shape, "")
    assert (await slot.describe()).prepared is None
    assert place.engine.containers == {}


async def held(place: Machine, slot: SandboxActor) -> str:
    """The key of a sandbox that the slot holds."""
    await place.node.start_container("sb-1", spec())
    return (await slot.adopt("sb-1", spec(), time.time())).key


async def test_a_slot_hears_that_the_node_has_ended_its_sandbox(place: Machine, slot: SandboxActor) -> None:
    key = await held(place, slot)
    assert await place.node.end_container(key, "sb-1")
    await asyncio.wait_for(slot.wipe("sb-1"), WITHIN_S)  # which waits for that
    assert (await slot.describe()).sandbox_id is None
    assert not await place.node.end_container(key, "sb-1"), "it is on its way out"
    await place.node.remove_container(key)
    assert place.engine.containers == {}


async def test_what_ended_a_sandbox_first_is_its_slots_to_tell(place: Machine, slot: SandboxActor) -> None:
    key = await held(place, slot)
    place.engine.end(key, out_of_memory=True)
    end = await asyncio.wait_for(slot.ended("sb-1"), WITHIN_S)
    assert not await place.node.end_container(key, "sb-1")
    assert end.reason is Reason.OUT_OF_MEMORY
