"""What scaling tells the controller and is told by it."""

from __future__ import annotations

import asyncio

import pytest

from shoal.actors.controller.capacity import LaunchableNodes, Outlook
from shoal.actors.controller.handlers import answer, handlers
from shoal.actors.controller.machine import Machine
from shoal.model.access import INSIDE
from shoal.model.capacity import Capacity, Demand, NodeType
from shoal.model.errors import InvalidRequest, Unavailable
from tests.unit.builders import resources, spec
from tests.unit.controller_world import NODE, World, steps

pytestmark = pytest.mark.anyio

EU = NodeType("eu-small", 4, 8192, region="eu-west-1", max=2)
US = NodeType("us-gpu", 8, 16384, gpu=1, region="us-east-1", runtimes=("runc", "runsc"), max=1)


@pytest.mark.parametrize(
    ("capacity", "outlook"),
    [
        (Capacity(), Outlook.NONE),
        (Capacity((US,)), Outlook.NONE),
        (Capacity((EU, US)), Outlook.LAUNCHABLE),
        (Capacity((EU,), running={"eu-small": 2}), Outlook.AT_MOST),
        (Capacity((EU,), exhausted={"eu-west-1": 101.0}), Outlook.EXHAUSTED),
        (Capacity((EU,), exhausted={"eu-small": 101.0}), Outlook.EXHAUSTED),
        (Capacity((EU,), exhausted={"eu-west-1": 100.0}), Outlook.LAUNCHABLE),
        (Capacity((EU,), launching={"eu-small": 1}, exhausted={"eu-west-1": 101.0}), Outlook.LAUNCHING),
    ],
)
def test_whether_a_node_may_come(capacity: Capacity, outlook: Outlook) -> None:
    def in_eu(machine: Machine) -> bool:
        return machine.region == "eu-west-1"

    assert LaunchableNodes(capacity).outlook(in_eu, now=100.0) is outlook


async def test_a_create_may_ask_for_a_node_that_does_not_run_yet() -> None:
    controller = await World(capacity=0).controller()
    known = handlers(controller.parts)
    wanted = spec(regions=("us-east-1",), resources=resources(gpu=1))
    with pytest.raises(InvalidRequest) as refused:
        await answer(known, "create", (wanted, 5.0, False), INSIDE)
    assert refused.value.field == "region"
    await answer(known, "report_capacity", (Capacity((EU, US)),), INSIDE)
    controller.begin(answer(known, "create", (wanted, 5.0, False), INSIDE))
    await steps(50)
    await asyncio.sleep(0)
    demand: Demand = await answer(known, "demand", (), INSIDE)
    assert [(each.regions, each.gpu, each.count) for each in demand.waiting] == [(("us-east-1",), 1, 1)]
    assert [(each.node_id, each.sandboxes, each.empty_s is None) for each in demand.nodes] == [(NODE, 0, False)]
    with pytest.raises(InvalidRequest) as impossible:
        await answer(known, "create", (spec(resources=resources(gpu=2)), 5.0, False), INSIDE)
    assert impossible.value.field == "gpu"


async def test_a_controller_that_scaling_has_not_told_yet_refuses_nothing_for_good() -> None:
    controller = await World().controller()
    known = handlers(controller.parts)
    controller.parts.demand.launchable.awaited = True
    wanted = spec(regions=("us-east-1",))
    with pytest.raises(Unavailable):
        await answer(known, "create", (wanted, 5.0, False), INSIDE)
    await answer(known, "report_capacity", (Capacity((EU,)),), INSIDE)
    with pytest.raises(InvalidRequest):
        await answer(known, "create", (wanted, 5.0, False), INSIDE)
