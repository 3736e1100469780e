"""What Ray's autoscaler gets and asks: its configuration and the provider; and what is made of its answers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler.tags import TAG_RAY_LAUNCH_REQUEST, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2.instance_manager.config import FileConfigReader

from shoal.cluster.scaling import planning
from shoal.cluster.scaling.backoff import Outcome
from shoal.cluster.scaling.contract import CloudError, Launched, MachineState, NoCapacity
from shoal.cluster.scaling.deciding import IDLE, Memory, decide
from shoal.cluster.scaling.files import ScalingFiles
from shoal.cluster.scaling.fleet import Fleet
from shoal.cluster.scaling.observing import capacity_of, limits_of, observe, still_waiting
from shoal.cluster.scaling.ray_config import ray_config
from shoal.cluster.scaling.ray_provider import FleetProvider
from shoal.cluster.scaling.reading import read_text
from shoal.model.capacity import Demand, NodeLoad
from tests.unit.scaling.test_fleet import FakeRegion, machine
from tests.unit.scaling.test_reading import GOOD
from tests.unit.scaling.worlds import waiting

CLUSTER = read_text(GOOD)


@dataclass
class FakeRayNode:
    """A node as Ray's cluster status has it."""

    instance_id: str
    node_id: str
    ray_node_type_name: str = "eu.cpu"
    free: dict[str, float] = field(default_factory=lambda: {"CPU": 4.0, "memory": 8192.0 * 2**20})

    def available_resources(self) -> dict[str, float]:
        return self.free

    def total_resources(self) -> dict[str, float]:
        return {"CPU": 4.0, "memory": 8192.0 * 2**20}


def provider(*regions: FakeRegion) -> FleetProvider:
    return FleetProvider({"state_dir": "/nowhere"}, "prod", Fleet(regions))


def test_ray_accepts_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "ray.yaml"
    path.write_text(ray_config(CLUSTER, "/state", 2, 2.0, {"eu.cpu": 3, "us.cpu": 0, "gone.cpu": 2}, {"eu.cpu": 1}))
    config = FileConfigReader(str(path)).get_cached_autoscaling_config()
    types = config.get_node_type_configs()
    assert (types["eu.cpu"].min_worker_nodes, types["eu.cpu"].max_worker_nodes) == (1, 3)
    assert types["eu.cpu"].resources == {"CPU": 8, "memory": 8192 << 20}, "with the machine's CPU overcommitted"
    assert types["eu.cpu"].labels == {"ray.io/availability-region": "eu"}
    assert types["us.cpu"].max_worker_nodes == 0
    assert types["gone.cpu"].max_worker_nodes == 2, "or Ray fails on its machines"
    assert types["eu.cpu"].priority > types["us.cpu"].priority
    assert config.disable_launch_config_check()
    assert config.disable_node_updaters()
    assert config.get_head_node_type() == "head"


def test_ray_finds_the_head_and_the_machines(tmp_path: Path) -> None:
    fleet = provider(FakeRegion("eu", [machine("a"), machine("b", state=MachineState.TERMINATING), machine("c", "")]))
    assert fleet.non_terminated_nodes({}) == ["head", "a"], "no machine that ends, or of no type"
    assert fleet.non_terminated_nodes({TAG_RAY_NODE_KIND: "worker"}) == ["a"]
    assert fleet.node_tags("a")[TAG_RAY_USER_NODE_TYPE] == "eu.cpu"
    assert fleet.node_tags("head")[TAG_RAY_NODE_KIND] == "head"
    fleet.terminate_nodes(["head", "a"])
    assert fleet.non_terminated_nodes({}) == ["head"]


def test_what_was_launched_is_listed_once_even_if_it_is_gone() -> None:
    eu = FakeRegion("eu", unlisted=True, settles_s=0.0)
    fleet = provider(eu)
    tags = {TAG_RAY_USER_NODE_TYPE: "eu.cpu", TAG_RAY_LAUNCH_REQUEST: "r1"}
    (machine_id,) = fleet.create_node({}, tags, 1)
    assert fleet.non_terminated_nodes({}) == ["head", machine_id]
    assert fleet.node_tags(machine_id)[TAG_RAY_USER_NODE_TYPE] == "eu.cpu"
    assert fleet.non_terminated_nodes({}) == ["head"]


def test_a_launch_that_gives_fewer_is_told_to_ray() -> None:
    class Short(FakeRegion):
        def launch(self, order: Any) -> Launched:
            return Launched([machine("one")], NoCapacity("only one"))

    fleet = provider(Short("eu"))
    with pytest.raises(CloudError):
        fleet.create_node({}, {TAG_RAY_USER_NODE_TYPE: "eu.cpu"}, 3)
    assert fleet.non_terminated_nodes({}) == ["head", "one"]


def test_a_slot_that_has_its_place_is_no_demand_though_its_sandbox_waits() -> None:
    shape = (1.0, 1024.0, 0.0)
    assert [each.count for each in still_waiting([waiting(5, in_ray=5)], {shape: 2})] == [2]
    assert list(still_waiting([waiting(5, in_ray=5)], {})) == []
    assert [each.count for each in still_waiting([waiting(300, in_ray=128)], {shape: 128})] == [300]
    assert [each.count for each in still_waiting([waiting(5)], {})] == [5], "a pool's, of which Ray knows nothing"
    both = [waiting(3, regions=("eu",), in_ray=3), waiting(3, regions=("us",), in_ray=3)]
    assert sum(each.count for each in still_waiting(both, {shape: 4})) == 4
    choosy = [waiting(3, in_ray=3), waiting(3, regions=("eu",), in_ray=3)]
    assert list(still_waiting(choosy, {shape: 3})) == choosy[:1], "no machine in eu need be launched for them"


def test_what_is_seen_is_put_together() -> None:
    region = FakeRegion("eu", [machine("a"), machine("b"), machine("twice")])
    fleet = Fleet([region])
    fleet.refresh()
    loads = (
        NodeLoad("node-a", "eu", None, 2, None),
        NodeLoad("node-2", "eu", None, 1, None),
        NodeLoad("node-3", "eu", None, 0, 5.0),
    )
    nodes = [
        FakeRayNode("head", "node-h", "head"),
        FakeRayNode("a", "node-a"),
        FakeRayNode("twice", "node-3"),
        FakeRayNode("twice", "node-2"),
        FakeRayNode("unlisted", "node-u", "us.cpu"),
        FakeRayNode("", "node-by-hand", ""),
    ]
    seen = observe(7.0, fleet.state(), nodes, {}, Demand((), loads), 100.0)
    found = {each.id: each for each in seen.machines}
    assert sorted(found) == ["a", "b", "twice", "unlisted"]
    assert (found["a"].sandboxes, found["a"].free) == (2, (4.0, 8192.0, 0.0))
    assert found["b"].node_id is None
    assert found["twice"].sandboxes == 1, "in use if one of both is"
    decision, _ = decide(limits_of(CLUSTER, 1.0), Memory(), seen)
    assert decision.most["us.cpu"] >= 1, "it runs, whatever its cloud lists"
    refused = Outcome(1, "us.cpu", 7.0, 0, "no_capacity")
    _, memory = decide(limits_of(CLUSTER, 1.0), Memory(), replace(seen, outcomes=(refused,)))
    told = capacity_of(limits_of(CLUSTER, 1.0), memory, seen, 5e9)
    assert (told.launching, told.running) == ({"eu.cpu": 1}, {"eu.cpu": 2, "us.cpu": 1})
    assert told.exhausted == {"us.cpu": 5e9 + 30}
    assert {each.name for each in told.types} == {"eu.cpu", "us.cpu"}


def test_the_plan_is_told(tmp_path: Path) -> None:
    limits = limits_of(read_text(f"max_cost_per_hour: 2\n{GOOD}"), 1.0)
    region = FakeRegion("eu", [machine("a"), machine("b")], errors=[])
    fleet = Fleet([region])
    fleet.refresh()
    region.errors = [NoCapacity("none of it")]
    fleet.refresh()
    idle = (NodeLoad("node-a", "eu", None, 0, 900.0, IDLE),)
    demand = Demand((waiting(3, regions=("mars",)),), idle)
    seen = observe(1000.0, fleet.state(), [FakeRayNode("a", "node-a")], {(1.0, 1024.0, 0.0): 3}, demand, 100.0)
    decision, memory = decide(limits, Memory(), seen)
    plan = planning.plan_of(
        limits, memory, seen, decision, fleet.state(), wall=5e9, monitor=None, troubles={"Ray": "is slow"}
    )
    files = ScalingFiles.below(tmp_path)
    files.write_plan(plan)
    assert files.read_plan() == plan
    assert {each["id"]: each["state"] for each in plan["machines"]} == {"a": "draining", "b": "launching"}
    assert plan["types"]["eu.cpu"]["launching"] == 1
    assert plan["cost_per_hour"] == 1.0
    lines = "\n".join(planning.told(plan, 5e9 + 60))
    for word in ("mars", "none of it", "60 s old", "is slow", "of at most 2"):
        assert word in lines, lines
    files.write_memory(memory)
    assert files.read_memory() == memory


def test_the_configuration_is_plain_yaml() -> None:
    config = yaml.safe_load(ray_config(CLUSTER, "/state", 2, 1.0))
    assert config["available_node_types"]["eu.cpu"]["min_workers"] == 1
    assert config["provider"]["type"] == "external"
