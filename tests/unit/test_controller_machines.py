"""Operators and machines: cordons that outlive the controller, drains, and what keeps a machine from joining."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from shoal.actors.controller.machines import Machines
from shoal.actors.controller.nodes import Node, Nodes
from shoal.actors.names import HEAD_RESOURCE, MACHINE_LABEL
from shoal.model import verbs
from shoal.model.access import INSIDE
from shoal.model.errors import FailedPrecondition, InvalidRequest, NodeNotFound
from shoal.model.settings import Settings
from shoal.model.states import Reason, State
from tests.unit.builders import node_info, spec
from tests.unit.controller_world import NODE, Controller, World, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


async def controller(world: World) -> Controller:
    """One whose node has answered."""
    made = await world.controller()
    node = made.parts.nodes.find(NODE)
    assert node is not None
    node.info = node_info(NODE)
    made.parts.nodes.kill = lambda handle: None
    return made


async def test_a_cordon_and_its_reason_outlive_the_controller() -> None:
    world = World()
    first = await controller(world)
    told = await first.parts.machines.cordon(NODE, "a disk fails", INSIDE)
    assert told.cordon is not None
    assert (told.cordon.why, told.cordon.by) == ("a disk fails", INSIDE.token)
    await first.kill()
    second = await controller(world)
    assert second.parts.nodes.cordoned() == {NODE: "a disk fails"}
    assert (await second.parts.machines.uncordon(NODE, INSIDE)).cordon is None
    assert world.disk.cordons == {}
    assert [entry.action for entry in world.disk.audit] == [verbs.cordon.audit, verbs.uncordon.audit]


async def test_a_drain_waits_for_what_runs_and_then_lets_the_node_go() -> None:
    world = World()
    made = await controller(world)
    info, _ = await made.parts.sandboxes.create(spec(), 10.0, True, INSIDE)
    waiting = await made.parts.machines.drain(NODE, "old", False, 0.0, INSIDE)
    assert (waiting.sandboxes, waiting.left) == (1, False)
    world.end(info.id, 0)
    gone = await made.parts.machines.drain(NODE, "old", False, 10.0, INSIDE)
    assert gone.left
    assert world.nodes[NODE] == 1, "it was closed"
    assert not any(slot.alive for slot in world.slots.values())
    assert world.disk.cordons[NODE].left
    assert (await made.parts.machines.drain(NODE, "old", False, 0.0, INSIDE)).left, "asked again, it has left"


async def test_a_forced_drain_evicts() -> None:
    world = World()
    made = await controller(world)
    info, _ = await made.parts.sandboxes.create(spec(), 10.0, True, INSIDE)
    told = await made.parts.machines.drain(NODE, "power", True, 10.0, INSIDE)
    assert told.left
    end = await made.parts.sandboxes.get(info.id, INSIDE)
    assert (end.state, end.reason) == (State.FAILED, Reason.EVICTED)


@pytest.mark.parametrize(
    ("field", "node", "why", "timeout"),
    [("node", "other", "why", 1.0), ("why", NODE, " ", 1.0), ("why", NODE, "x" * 257, 1.0), ("timeout", NODE, "y", 31)],
)
async def test_bad_drains_name_the_field(field: str, node: str, why: str, timeout: float) -> None:
    made = await controller(World())
    with pytest.raises((InvalidRequest, NodeNotFound)) as raised:
        await made.parts.machines.drain(node, why, False, timeout, INSIDE)
    assert raised.value.field == field
    assert not made.parts.nodes.cordons


async def test_the_head_is_not_drained() -> None:
    made = await controller(World())
    node = made.parts.nodes.find(NODE)
    assert node is not None
    node.resources = {HEAD_RESOURCE: 1.0}
    with pytest.raises(FailedPrecondition) as raised:
        await made.parts.machines.drain(NODE, "why", False, 1.0, INSIDE)
    assert raised.value.state == "head"


async def test_the_cordon_of_a_machine_that_is_gone_is_forgotten() -> None:
    world = World()
    made = await controller(world)
    await made.parts.machines.cordon(NODE, "why", INSIDE)
    await made.parts.machines.forget_gone()
    assert NODE in world.disk.cordons
    del made.parts.nodes._nodes[NODE]
    await made.parts.machines.forget_gone()
    assert (world.disk.cordons, made.parts.nodes.cordons) == ({}, {})


class Joining(Nodes):
    """A machine called `m` that Ray knows; `refresh` asks nobody."""

    async def refresh(self, *, wait_s: float = 0.0, new_only: bool = False) -> list[str]:
        return []


async def test_a_machine_that_was_drained_takes_part_again_when_it_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    made = await controller(world)
    parts = made.parts
    node = parts.nodes.find(NODE)
    assert node is not None
    assert (await parts.machines.drain(NODE, "a disk fails", False, 5.0, INSIDE)).left
    parts.nodes._listed = {NODE: ("m", "worker-3")}

    async def refresh(*, wait_s: float = 0.0, new_only: bool = False) -> list[str]:
        if not parts.nodes._gone(NODE):
            node.labels, node.address = {MACHINE_LABEL: "m"}, "10.0.0.9"
            parts.nodes._nodes[NODE] = node
        return []

    async def reaches(host: str, port: int) -> bool:
        return True

    monkeypatch.setattr(parts.nodes, "refresh", refresh)
    monkeypatch.setattr(parts.machines, "_reaches", reaches)
    assert (await parts.machines.admit("m", time.time())).cordon is None
    assert world.disk.cordons == {}
    for name in ("worker-3", "m", NODE, NODE[:8]):
        assert (await parts.machines.drain(NODE, "again", False, 5.0, INSIDE)).left
        assert (await parts.machines.drain(name, "again", False, 5.0, INSIDE)).left, "it is so already"
        assert (await parts.machines.uncordon(name, INSIDE)).cordon is None
        assert parts.nodes.known(NODE)
    with pytest.raises(NodeNotFound, match="shoal join"):
        await parts.machines.uncordon("worker-4", INSIDE)
    await made.kill()


@pytest.mark.parametrize("closed", ["ray", "relay", None])
async def test_a_machine_that_the_head_does_not_reach_is_told_so(closed: str | None) -> None:
    nodes = Joining(Settings(), "cluster", b"s" * 32)
    node = nodes._nodes["n"] = Node(
        "n", cast("Any", None), {}, {MACHINE_LABEL: "m"}, "host", address="10.0.0.9", port=5
    )
    node.info = node_info("n", address="10.0.0.9:6")

    async def reaches(host: str, port: int) -> bool:
        return (host, port) != ("10.0.0.9", {"ray": 5, "relay": 6}.get(closed or ""))

    machines = Machines(nodes, cast("Any", None), cast("Any", None), cast("Any", None), reaches)
    if closed is None:
        assert (await machines.admit("m", time.time())).address == "10.0.0.9:6"
        return
    with pytest.raises(FailedPrecondition) as raised:
        await machines.admit("m", time.time())
    assert raised.value.state == "unreachable"


@pytest.mark.parametrize("ahead_s", [-300.0, 300.0])
async def test_a_machine_whose_clock_is_far_off_is_told_so(ahead_s: float) -> None:
    made = await controller(World())
    with pytest.raises(FailedPrecondition, match=r"300 s (ahead of|behind) the head's") as raised:
        await made.parts.machines.admit("m", time.time() + ahead_s)
    assert raised.value.state == "clock"


async def test_what_keeps_its_node_from_opening_is_told() -> None:
    nodes = Joining(Settings(), "cluster", b"s" * 32)
    node = nodes._nodes["n"] = Node(
        "n", cast("Any", None), {}, {MACHINE_LABEL: "m"}, "host", address="10.0.0.9", port=5
    )
    node.error = InvalidRequest("network.subnet: it overlaps", field="network.subnet")

    async def reaches(host: str, port: int) -> bool:
        return True

    with pytest.raises(InvalidRequest) as raised:
        await Machines(nodes, cast("Any", None), cast("Any", None), cast("Any", None), reaches).admit("m", time.time())
    assert raised.value.field == "network.subnet"


async def test_sandboxes_of_a_lost_node_end_as_node_lost_for_those_who_wait() -> None:
    world = World()
    made = await controller(world)
    info, _ = await made.parts.sandboxes.create(spec(), 10.0, True, INSIDE)
    waiting = made.begin(made.parts.sandboxes.wait(info.id, 30.0, INSIDE))
    await made.parts.supervisor.lose_node(NODE)
    await until(waiting.done, "the wait is over")
    assert waiting.result().reason is Reason.NODE_LOST
