"""Machines of AWS, against moto: several regions at once, and what EC2 refuses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from moto import mock_aws

from shoal.cluster.scaling.aws import AwsRegion
from shoal.cluster.scaling.aws_errors import translate
from shoal.cluster.scaling.aws_regions import open_aws
from shoal.cluster.scaling.aws_user_data import user_data
from shoal.cluster.scaling.contract import (
    CloudError,
    MachineState,
    Misconfigured,
    NoCapacity,
    Order,
    QuotaReached,
    RegionDown,
    Throttled,
    Unauthorized,
)
from shoal.cluster.scaling.fleet import Fleet
from shoal.cluster.scaling.reading import read_file
from shoal.cluster.scaling.spec import AwsCluster, AwsRegionSpec, AwsTypeSpec
from tests.unit.scaling.test_reading import CONFIGS

REGIONS = ("eu-west-1", "us-east-1")
_numbers = itertools.count()


@dataclass
class Ec2:
    """A client of EC2 that can be made to refuse: `refuse(operation, code)`, as often as said, or while `when` holds
    for the request."""

    client: Any
    requests: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._refusals: dict[str, list[Any]] = {}
        self.gives = 1000  # machines for one request
        self.client.meta.events.register("provide-client-params.ec2.*", self._note)
        self.client.meta.events.register("before-call.ec2.*", self._answer)

    def reset(self) -> None:
        self.requests.clear()
        self._refusals.clear()
        self.gives = 1000

    def refuse(self, operation: str, code: str, times: int = 1000, when: Any = lambda request: True) -> None:
        self._refusals[operation] = [code, times, when]

    def _note(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        self._last = params
        if model.name == "RunInstances":
            self.requests.append(dict(params))
            # moto always gives the least; EC2 as many as it has room for.
            params["MinCount"] = params["MaxCount"] = min(params["MaxCount"], self.gives)

    def _answer(self, model: Any, **_: Any) -> Any:
        refusal = self._refusals.get(model.name)
        if refusal is None or refusal[1] <= 0 or not refusal[2](self._last):
            return None
        refusal[1] -= 1
        error = {"Error": {"Code": refusal[0], "Message": "as the test says"}, "ResponseMetadata": {}}
        error["ResponseMetadata"]["HTTPStatusCode"] = 400  # type: ignore[index]
        return SimpleNamespace(status_code=400, headers={}), error


@dataclass
class World:
    clients: dict[str, Ec2]
    regions: dict[str, AwsRegion]
    specs: dict[str, AwsRegionSpec]
    name: str


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[str, Ec2]]:
    """A client takes a second to make: one for each region, for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")):
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        with mock_aws():
            yield {name: Ec2(boto3.client("ec2", region_name=name)) for name in REGIONS}


@pytest.fixture(scope="module")
def specs(clients: dict[str, Ec2]) -> dict[str, AwsRegionSpec]:
    return {name: spec_of(ec2.client) for name, ec2 in clients.items()}


@pytest.fixture
def world(clients: dict[str, Ec2], specs: dict[str, AwsRegionSpec]) -> World:
    """A cluster of a name of its own."""
    for ec2 in clients.values():
        ec2.reset()
    name = f"test-{next(_numbers)}"
    return World(clients, {each: region(each, clients[each], specs[each], name) for each in REGIONS}, specs, name)


def region(name: str, ec2: Ec2, spec: AwsRegionSpec, cluster: str, head: str = "h1") -> AwsRegion:
    made = AwsRegion(name, cluster, head, spec, ec2.client, lambda kind: f"#!/bin/sh\n# {kind}\n", {"team": "agents"})
    made.each_s = 0.0
    return made


def spec_of(client: Any) -> AwsRegionSpec:
    subnets = client.describe_subnets()["Subnets"][:2]
    image = client.describe_images(Filters=[{"Name": "name", "Values": ["amzn2-ami-hvm*"]}])["Images"][0]["ImageId"]
    group = client.describe_security_groups()["SecurityGroups"][0]["GroupId"]
    common: dict[str, Any] = {"instance_type": "m5.large", "cpus": 2, "memory": 7000, "max": 10}
    return AwsRegionSpec(
        image=image,
        subnets={each["AvailabilityZone"]: each["SubnetId"] for each in subnets},
        security_groups=[group],
        types={
            "cpu": AwsTypeSpec(**common),
            "cheap": AwsTypeSpec(**common, spot="prefer"),
            "spot": AwsTypeSpec(**common, spot="only"),
            "zonal": AwsTypeSpec(**common, zone=subnets[1]["AvailabilityZone"]),
        },
    )


def order(name: str, kind: str = "cpu", count: int = 2, token: str = "token-1") -> Order:
    return Order(f"{name}.{kind}", count, token, {"ray-node-type": "worker", "ray-launch-request": "r1"})


def test_several_regions_launch_list_and_terminate(world: World) -> None:
    fleet = Fleet(world.regions.values())
    for name in REGIONS:
        assert len(fleet.launch(order(name, count=3))) == 3
    machines = fleet.refresh()
    assert sorted({each.type for each in machines}) == sorted(f"{name}.cpu" for name in REGIONS)
    assert len(machines) == 6
    assert all(each.zone and each.zone.startswith(each.type.partition(".")[0]) for each in machines)
    assert machines[0].tags["ray-launch-request"] == "r1"
    gone = [each.id for each in machines if each.type.startswith("eu")]
    fleet.terminate([*gone, "i-00000000000000000"])
    assert [each.id for each in fleet.refresh() if each.state is not MachineState.TERMINATING and each.id in gone] == []
    assert len([each for each in fleet.refresh() if each.state is not MachineState.TERMINATING]) == 3


def test_a_machine_carries_its_tags_from_the_request_on_and_ends_by_itself(world: World) -> None:
    world.regions["eu-west-1"].launch(order("eu-west-1"))
    (request,) = world.clients["eu-west-1"].requests
    for each in request["TagSpecifications"]:
        tags = {tag["Key"]: tag["Value"] for tag in each["Tags"]}
        assert (tags["shoal-cluster"], tags["shoal-type"], tags["team"]) == (world.name, "eu-west-1.cpu", "agents")
    assert {each["ResourceType"] for each in request["TagSpecifications"]} >= {"instance", "volume"}
    assert request["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert request["MetadataOptions"]["HttpTokens"] == "required"
    assert request["MetadataOptions"]["HttpPutResponseHopLimit"] == 1, "not as far as a sandbox"
    assert request["BlockDeviceMappings"][0]["Ebs"]["DeleteOnTermination"] is True


def test_the_same_order_gives_no_more_machines(world: World) -> None:
    eu = world.regions["eu-west-1"]
    eu.launch(order("eu-west-1"))
    eu.launch(order("eu-west-1"))
    tokens = [request["ClientToken"] for request in world.clients["eu-west-1"].requests]
    assert tokens[0] == tokens[1], "by which EC2 knows it"
    eu.launch(order("eu-west-1", token="token-2"))
    assert world.clients["eu-west-1"].requests[-1]["ClientToken"] != tokens[0]
    assert len(tokens[0]) <= 64


def test_machines_of_another_cluster_are_neither_listed_nor_terminated(world: World) -> None:
    other = region("eu-west-1", world.clients["eu-west-1"], world.specs["eu-west-1"], "dev")
    (theirs,) = other.launch(order("eu-west-1", count=1))
    eu = world.regions["eu-west-1"]
    eu.launch(order("eu-west-1", count=1, token="mine"))
    assert theirs.id not in [each.id for each in eu.machines()]
    eu.terminate([theirs.id])
    assert [each.state for each in other.machines()] == [MachineState.RUNNING]


def test_machines_of_another_head_are_foreign_even_if_the_name_is_the_same(world: World) -> None:
    eu = world.regions["eu-west-1"]
    again = region("eu-west-1", world.clients["eu-west-1"], world.specs["eu-west-1"], world.name, "h2")
    (theirs,) = again.launch(order("eu-west-1", count=1))
    assert (eu.machines(), eu.foreign_machines()) == ([], [theirs.id])
    assert again.foreign_machines() == []
    eu.terminate([theirs.id])
    assert [each.state for each in again.machines()] == [MachineState.RUNNING]


def test_no_capacity_in_one_zone_goes_on_in_the_next(world: World) -> None:
    ec2, eu = world.clients["eu-west-1"], world.regions["eu-west-1"]
    first = next(iter(world.specs["eu-west-1"].subnets.values()))
    ec2.refuse("RunInstances", "InsufficientInstanceCapacity", when=lambda request: request["SubnetId"] == first)
    assert len(eu.launch(order("eu-west-1"))) == 2
    assert len({request["SubnetId"] for request in ec2.requests}) == 2
    ec2.refuse("RunInstances", "InsufficientInstanceCapacity")
    with pytest.raises(NoCapacity):
        eu.launch(order("eu-west-1", token="again"))


def test_a_type_of_one_zone_is_launched_nowhere_else(world: World) -> None:
    ec2, eu = world.clients["eu-west-1"], world.regions["eu-west-1"]
    ec2.refuse("RunInstances", "InsufficientInstanceCapacity")
    with pytest.raises(NoCapacity):
        eu.launch(order("eu-west-1", "zonal"))
    assert len(ec2.requests) == 1


def test_spot_falls_back_to_on_demand_where_that_is_allowed(world: World) -> None:
    ec2, eu = world.clients["eu-west-1"], world.regions["eu-west-1"]
    ec2.refuse("RunInstances", "MaxSpotInstanceCountExceeded", when=lambda request: "InstanceMarketOptions" in request)
    assert len(eu.launch(order("eu-west-1", "cheap"))) == 2
    assert ["InstanceMarketOptions" in request for request in ec2.requests] == [True, True, False]
    with pytest.raises(QuotaReached):
        eu.launch(order("eu-west-1", "spot"))


def test_a_part_of_an_order_is_told_with_what_kept_the_rest_back(world: World) -> None:
    ec2, eu = world.clients["eu-west-1"], world.regions["eu-west-1"]
    ec2.gives = 1
    fleet = Fleet([eu])
    launched = fleet.launch(order("eu-west-1", "zonal", count=5))
    assert len(launched) == 1
    assert isinstance(launched.error, NoCapacity)
    outcome = fleet.state().outcomes[-1]
    assert (outcome.launched, outcome.kind) == (1, "no_capacity")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("RequestLimitExceeded", Throttled),
        ("ExpiredToken", Unauthorized),
        ("UnauthorizedOperation", Unauthorized),
        ("VcpuLimitExceeded", QuotaReached),
        ("InvalidSubnetID.NotFound", Misconfigured),
        ("InternalError", RegionDown),
    ],
)
def test_what_ec2_refuses_is_told_apart(world: World, code: str, kind: type[CloudError]) -> None:
    ec2, eu = world.clients["eu-west-1"], world.regions["eu-west-1"]
    ec2.refuse("RunInstances", code)
    with pytest.raises(CloudError) as raised:
        eu.launch(order("eu-west-1"))
    assert type(raised.value) is kind


def test_a_region_with_expired_credentials_keeps_its_machines_in_the_list(world: World) -> None:
    fleet = Fleet(world.regions.values())
    launched = {each.id for each in fleet.launch(order("eu-west-1"))}
    fleet.refresh()
    world.clients["eu-west-1"].refuse("DescribeInstances", "ExpiredToken")
    fleet.launch(order("us-east-1"))
    assert launched <= {each.id for each in fleet.refresh()}
    assert fleet.state().regions["eu-west-1"].failed is not None
    assert fleet.state().outcomes[-1].kind == "unauthorized"


def test_what_botocore_raises_by_itself() -> None:
    assert isinstance(translate(NoCredentialsError()), Unauthorized)
    assert isinstance(translate(EndpointConnectionError(endpoint_url="https://x")), RegionDown)
    assert isinstance(translate(ReadTimeoutError(endpoint_url="https://x")), RegionDown)


def test_a_described_cluster_is_opened_in_all_its_regions(clients: dict[str, Ec2], tmp_path: Path) -> None:
    described = read_file(CONFIGS / "aws.yaml")
    assert isinstance(described, AwsCluster)
    opened = open_aws(described, tmp_path)
    assert [each.name for each in opened] == list(described.regions)
    assert all(each.machines() == each.foreign_machines() == [] for each in opened)
    with pytest.raises(Misconfigured):
        opened[0].launch(order("eu-west-1"))  # there is no head to join


def test_a_script_too_long_for_ec2_is_refused() -> None:
    kind = AwsTypeSpec(instance_type="m5.large", cpus=2, memory=7000, max=1)
    common: dict[str, Any] = {"head": "10.0.0.5:6379", "join_token": "shoaljoin_x", "cpus": 2}
    script = user_data("eu-west-1.cpu", kind, **common, setup=["apt-get install -y docker.io"])
    assert "RAY_NODE_TYPE_NAME=eu-west-1.cpu" in script
    assert "shoaljoin_x" not in user_data("eu-west-1.cpu", kind, **common, token_command="aws secretsmanager …")
    with pytest.raises(Misconfigured):
        user_data("eu-west-1.cpu", kind, **common, setup=["#" * 16_000])
