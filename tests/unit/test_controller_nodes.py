"""The controller's machines: each is asked on its own, lost by the clock, and closed whatever becomes of the others."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from shoal.actors.controller.nodes import LOST_S, Nodes
from shoal.actors.names import MACHINE_LABEL, NODE_PREFIX
from shoal.model.errors import DeadlineExceeded, FailedPrecondition, ShoalError, Unavailable
from shoal.model.info import Cordon, NodeInfo
from shoal.model.settings import Settings
from tests.unit.controller_world import steps

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


A, B, C = ("a" * 56, "b" * 56, "c" * 56)


def info(node_id: str) -> NodeInfo:
    return NodeInfo(
        id=node_id, address=f"{node_id}:1", hostname=node_id, region=None, engine="fake", runtimes=("runc",),
        alive=True, sandboxes=0, warm=0, cpu_total=4.0, cpu_free=4.0, memory_total=4096, memory_free=4096, pids=24576,
        disk_total=1 << 20,
    )  # fmt: skip


@dataclass
class Cluster:
    """Machines by their ids, which are their handles, too. `alive`: what Ray says, None: it does not list them; `hung`:
    whose actors never answer; `failing`: whose actors raise."""

    alive: dict[str, bool | None]
    hung: set[str] = field(default_factory=set)
    failing: dict[str, ShoalError] = field(default_factory=dict)
    now: float = 1000.0
    calls: list[tuple[str, str]] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    _class: Any = None

    def nodes(self) -> Nodes:
        return Nodes(
            Settings(),
            "cluster",
            b"s" * 32,
            call=self.call,
            clock=lambda: self.now,
            list_machines=lambda: [
                {
                    "NodeID": name,
                    "Alive": alive,
                    "Resources": {"CPU": 4.0},
                    "NodeManagerHostname": f"host-{name}",
                    "Labels": {MACHINE_LABEL: f"machine-{name[0]}"},
                }
                for name, alive in self.alive.items()
                if alive is not None
            ],
            kill=self.killed.append,  # type: ignore[arg-type]
            _class=self,
        )

    def options(self, **options: Any) -> Cluster:
        self._made = str(options["name"]).removeprefix(NODE_PREFIX)
        return self

    def remote(self, *_: Any) -> str:
        return self._made

    async def call(self, handle: str, method: str, *_: Any, timeout_s: float | None = None) -> Any:
        self.calls.append((handle, method))
        if handle in self.hung or not self.alive[handle]:
            await asyncio.wait_for(asyncio.Event().wait(), None)
        if handle in self.failing:
            raise self.failing[handle]
        await asyncio.sleep(0)
        return {"info": info(handle), "close_off": [], "series": {}}.get(method)


async def look(nodes: Nodes) -> list[str]:
    lost = await nodes.refresh()
    await steps(20)
    return lost


async def test_one_that_hangs_delays_neither_the_answers_of_others_nor_their_loss() -> None:
    cluster = Cluster({A: True, B: True, C: True}, hung={B})
    nodes = cluster.nodes()
    assert await look(nodes) == []
    assert len(nodes.capacities()) == 2
    cluster.alive[C] = None
    assert await look(nodes) == []
    assert not nodes.alive(C)
    cluster.now += LOST_S - 0.1
    assert await look(nodes) == []
    cluster.now += 0.1
    assert await look(nodes) == [C]
    assert nodes.alive(B), "Ray says that it lives: its sandboxes go on"
    assert cluster.calls.count((B, "info")) == 1, "it has a question to answer already"


async def test_how_often_ray_is_asked_makes_no_difference() -> None:
    cluster = Cluster({A: True, B: True})
    nodes = cluster.nodes()
    await look(nodes)
    cluster.alive[B] = None
    for _ in range(20):
        assert await look(nodes) == []
    cluster.now += LOST_S + 100
    assert await look(nodes) == [B]
    assert await look(nodes) == []


async def test_one_that_comes_back_in_time_is_not_lost() -> None:
    cluster = Cluster({A: True})
    nodes = cluster.nodes()
    await look(nodes)
    for alive in (None, True, None):
        cluster.alive[A] = alive
        assert await look(nodes) == []
        cluster.now += LOST_S - 1
    assert nodes.relay(A, "elsewhere") == f"{A}:1"


async def test_one_that_ray_says_is_dead_is_lost_at_once() -> None:
    cluster = Cluster({A: True, B: True})
    nodes = cluster.nodes()
    await look(nodes)
    cluster.alive[A] = False
    told: list[str] = []
    nodes.on_lost = told.append
    assert await look(nodes) == [A]
    assert told == [A]
    assert await look(nodes) == []
    assert not nodes.known(A)


async def test_one_that_answers_for_the_first_time_is_told_once() -> None:
    cluster = Cluster({A: True})
    nodes = cluster.nodes()
    told: list[str] = []
    nodes.on_joined = told.append
    cluster.failing[A] = Unavailable("it starts")
    await look(nodes)
    assert told == []
    cluster.failing.clear()
    await look(nodes)
    await look(nodes)
    assert told == [A]


async def test_one_that_has_left_gets_no_node_actor_again_until_it_is_uncordoned() -> None:
    cluster = Cluster({A: True, B: True})
    nodes = cluster.nodes()
    await look(nodes)
    nodes.cordons[A] = Cordon(A, "disk", "tk-1", 1.0)
    await nodes.leave(A, 5.0)
    assert cluster.killed == [A]
    assert await look(nodes) == []
    assert (nodes.known(A), nodes.listed(A), nodes.known(B)) == (False, True, True)
    again = cluster.nodes()  # another controller, which the store tells
    again.cordons[A] = Cordon(A, "disk", "tk-1", 1.0, left=True)
    await look(again)
    assert (again.drained("machine-a"), again.drained("machine-b")) == (A, None)
    assert (again.known(A), again.known(B)) == (False, True)
    del again.cordons[A]
    again.come_back(A)
    await look(again)
    assert again.known(A)


async def test_one_whose_leave_fails_is_part_of_the_cluster_again() -> None:
    cluster = Cluster({A: True})
    nodes = cluster.nodes()
    await look(nodes)
    cluster.failing[A] = Unavailable("the engine is gone")
    with pytest.raises(Unavailable):
        await nodes.leave(A, 5.0)
    cluster.failing.clear()
    await look(nodes)
    assert (nodes.known(A), cluster.killed) == (True, [])


async def test_one_that_fails_is_asked_again_and_told_as_such() -> None:
    cluster = Cluster({A: True, B: True}, failing={B: FailedPrecondition("there is no engine")})
    nodes = cluster.nodes()
    await look(nodes)
    assert nodes.failure() is not None
    cluster.failing.clear()
    await look(nodes)
    assert nodes.failure() is None
    assert len(nodes.capacities()) == 2


async def test_a_controller_that_was_overtaken_learns_it_from_any_node() -> None:
    told: list[bool] = []
    cluster = Cluster({A: True, B: True})
    nodes = cluster.nodes()
    nodes.on_overtaken = lambda: told.append(True)
    await look(nodes)
    assert not told
    cluster.failing = {B: FailedPrecondition("another controller is the cluster's now", state="overtaken")}
    await look(nodes)
    assert told


async def test_one_that_is_slow_has_not_failed() -> None:
    cluster = Cluster({A: True}, failing={A: DeadlineExceeded("info took longer than 10 s")})
    nodes = cluster.nodes()
    await look(nodes)
    assert (nodes.failure(), nodes.capacities()) == (None, {})


async def test_all_are_closed_whatever_becomes_of_some() -> None:
    cluster = Cluster({A: True, B: True, C: True}, failing={B: Unavailable("the engine is gone")})
    nodes = cluster.nodes()
    await look(nodes)
    (failed,) = await nodes.close(5.0)
    assert (failed.node_id, failed.hostname, failed.error) == (B, f"host-{B}", cluster.failing[B])
    assert {(node, "close") for node in (A, B, C)} <= set(cluster.calls)
