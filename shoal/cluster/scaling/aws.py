"""Machines of one AWS region, by EC2.

A machine carries the tags `shoal-cluster` (the cluster's name), `shoal-head` (the id of its head's state directory) and
`shoal-type` from the request that launches it, with its volume and network interface. It joins by its user data
(`aws_user_data.py`), reads nothing of the cloud's but its own metadata, and ends when it shuts itself down.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from shoal.cluster.scaling.aws_errors import translate
from shoal.cluster.scaling.contract import (
    CloudError,
    Launched,
    Machine,
    MachineState,
    Misconfigured,
    NoCapacity,
    Notice,
    Order,
    QuotaReached,
)
from shoal.cluster.scaling.spec import AwsRegionSpec, AwsTypeSpec

CLUSTER_TAG = "shoal-cluster"
HEAD_TAG = "shoal-head"
TYPE_TAG = "shoal-type"
_RAY_TAG = "shoal-ray:"

_CALLS = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 3})
_STATES = {
    "pending": MachineState.STARTING,
    "running": MachineState.RUNNING,
    # Somebody stopped it: no node comes of it again, and its volume costs money.
    "stopping": MachineState.RUNNING,
    "stopped": MachineState.RUNNING,
    "shutting-down": MachineState.TERMINATING,
}
_THERE = {"Name": "instance-state-name", "Values": [*_STATES]}
_TAKEN_AWAY = ("marked-for-termination", "marked-for-stop")
_NOTICE_S = 120.0
"""AWS gives two minutes."""

_AT_ONCE = 500
"""Machines in one request to terminate; EC2 takes up to 1,000."""


def regions(
    name: str,
    head: str,
    specs: Mapping[str, AwsRegionSpec],
    user_data: Callable[[str], str],
    *,
    profile: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> list[AwsRegion]:
    """A client for each region. `user_data`: a machine's script, by the full name of its type."""
    try:
        session = boto3.Session(profile_name=profile)
        return [
            AwsRegion(
                region, name, head, spec, session.client("ec2", region_name=region, config=_CALLS), user_data, tags
            )
            for region, spec in specs.items()
        ]
    except BotoCoreError as error:
        raise translate(error) from None


class AwsRegion:
    """The cluster's machines in one region. `client`: boto3's of EC2; `wall`: the time in unix seconds."""

    def __init__(
        self,
        name: str,
        cluster: str,
        head: str,
        spec: AwsRegionSpec,
        client: Any,
        user_data: Callable[[str], str],
        tags: Mapping[str, str] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.settles_s = 120.0
        self.each_s = 5.0
        self._cluster = cluster
        self._head = head
        self._spec = spec
        self._ec2 = client
        self._user_data = user_data
        self._tags = dict(tags or {})
        self._wall = wall
        self._root_devices: dict[str, str] = {}

    def launch(self, order: Order) -> Launched:
        kind = self._type(order.type)
        machines: list[Machine] = []
        refused: CloudError | None = None
        for number, (spot, zone) in enumerate(_attempts(kind, self._spec.subnets)):
            left = order.count - len(machines)
            if left == 0:
                break
            request = self._request(order, kind, spot, zone)
            # Sent again, the same attempt gives the same machines.
            token = hashlib.sha256(f"{order.token} {number}".encode()).hexdigest()
            try:
                with _told():
                    answer = self._ec2.run_instances(MinCount=1, MaxCount=left, ClientToken=token, **request)
            except (NoCapacity, QuotaReached) as error:
                refused = error
                continue
            except CloudError as error:
                if machines:
                    return Launched(machines, error)
                raise
            machines += [self._machine(instance) for instance in answer["Instances"]]
        if len(machines) >= order.count:
            return Launched(machines)
        short = refused or NoCapacity(f"{self.name} gave {len(machines)} of {order.count} {kind.instance_type}")
        if not machines:
            raise short
        return Launched(machines, short)

    def machines(self) -> Sequence[Machine]:
        return [self._machine(instance) for instance in self._instances(Filters=self._own())]

    def foreign_machines(self) -> Sequence[str]:
        found = self._instances(Filters=[_tagged(CLUSTER_TAG, self._cluster), _THERE])
        return [each["InstanceId"] for each in found if _tags(each).get(HEAD_TAG) != self._head]

    def terminate(self, machine_ids: Sequence[str]) -> None:
        first: CloudError | None = None
        for start in range(0, len(machine_ids), _AT_ONCE):
            some = machine_ids[start : start + _AT_ONCE]
            # By a filter: it names only those that exist and are the cluster's.
            chosen = [*self._own(), {"Name": "instance-id", "Values": [*some]}]
            try:
                found = [instance["InstanceId"] for instance in self._instances(Filters=chosen)]
                if found:
                    with _told():
                        self._ec2.terminate_instances(InstanceIds=found)
            except CloudError as error:
                first = first or error
        if first is not None:
            raise first

    def notices(self) -> Sequence[Notice]:
        if all(kind.spot == "never" for kind in self._spec.types.values()):
            return []
        with _told():
            pages = self._ec2.get_paginator("describe_spot_instance_requests").paginate(
                Filters=[{"Name": "status-code", "Values": [*_TAKEN_AWAY]}]
            )
            requests = [request for page in pages for request in page["SpotInstanceRequests"]]
        return [
            Notice(request["InstanceId"], _left(_told_at(request), self._wall()))
            for request in requests
            if request.get("InstanceId")
        ]

    def _type(self, name: str) -> AwsTypeSpec:
        kind = self._spec.types.get(name.partition(".")[2])
        if kind is None:
            raise Misconfigured(f"{self.name} has no type {name}")
        return kind

    def _own(self) -> list[dict[str, Any]]:
        return [_tagged(CLUSTER_TAG, self._cluster), _tagged(HEAD_TAG, self._head), _THERE]

    def _instances(self, **query: Any) -> Iterator[dict[str, Any]]:
        with _told():
            for page in self._ec2.get_paginator("describe_instances").paginate(**query):
                for reservation in page["Reservations"]:
                    yield from reservation["Instances"]

    def _request(self, order: Order, kind: AwsTypeSpec, spot: bool, zone: str) -> dict[str, Any]:
        tags = {
            **self._tags,
            **{f"{_RAY_TAG}{name}": value for name, value in order.tags.items()},
            CLUSTER_TAG: self._cluster,
            HEAD_TAG: self._head,
            TYPE_TAG: order.type,
            "Name": f"shoal {self._cluster} {order.type}",
        }
        found = [{"Key": name, "Value": value} for name, value in tags.items()]
        request: dict[str, Any] = {
            "ImageId": kind.image or self._spec.image,
            "InstanceType": kind.instance_type,
            "SubnetId": self._spec.subnets[zone],
            "SecurityGroupIds": [*self._spec.security_groups],
            "UserData": self._user_data(order.type),
            "InstanceInitiatedShutdownBehavior": "terminate",
            # Version 2 only, and no further than the machine itself: sandboxes must not get its role.
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled"},
            "BlockDeviceMappings": [
                {
                    "DeviceName": self._root_device(kind.image or self._spec.image),
                    "Ebs": {
                        "VolumeSize": kind.disk,
                        "VolumeType": "gp3",
                        "DeleteOnTermination": True,
                        "Encrypted": True,
                    },
                }
            ],
            "TagSpecifications": [
                {"ResourceType": each, "Tags": found} for each in ("instance", "volume", "network-interface")
            ],
        }
        if self._spec.key is not None:
            request["KeyName"] = self._spec.key
        if self._spec.instance_profile is not None:
            request["IamInstanceProfile"] = {"Name": self._spec.instance_profile}
        if spot:
            request["InstanceMarketOptions"] = {
                "MarketType": "spot",
                "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
            }
        return request

    def _root_device(self, image: str) -> str:
        """How the image calls its root volume: under another name, `disk` would be a second one."""
        if image not in self._root_devices:
            with _told():
                found = self._ec2.describe_images(ImageIds=[image])["Images"]
            if not found:
                raise Misconfigured(f"{self.name} has no image {image}")
            self._root_devices[image] = found[0].get("RootDeviceName") or "/dev/xvda"
        return self._root_devices[image]

    def _machine(self, instance: Mapping[str, Any]) -> Machine:
        tags = _tags(instance)
        return Machine(
            id=instance["InstanceId"],
            type=tags.get(TYPE_TAG, ""),
            state=_STATES.get(instance["State"]["Name"], MachineState.TERMINATING),
            address=instance.get("PrivateIpAddress", ""),
            zone=instance.get("Placement", {}).get("AvailabilityZone"),
            spot=instance.get("InstanceLifecycle") == "spot",
            launched_at=instance["LaunchTime"].timestamp(),
            tags={name.removeprefix(_RAY_TAG): value for name, value in tags.items() if name.startswith(_RAY_TAG)},
        )


def _attempts(kind: AwsTypeSpec, subnets: Mapping[str, str]) -> Iterator[tuple[bool, str]]:
    """(whether spot, zone) in the order in which they are tried."""
    zones = [kind.zone] if kind.zone is not None else [*subnets]
    for spot in {"never": (False,), "prefer": (True, False), "only": (True,)}[kind.spot]:
        for zone in zones:
            yield spot, zone


def _tagged(name: str, value: str) -> dict[str, Any]:
    return {"Name": f"tag:{name}", "Values": [value]}


def _tags(instance: Mapping[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance.get("Tags", ())}


def _told_at(request: Mapping[str, Any]) -> float:
    at = request.get("Status", {}).get("UpdateTime")
    return 0.0 if at is None else float(at.timestamp())


def _left(told_at: float, now: float) -> float:
    """Seconds until a machine goes; the clocks may differ."""
    return min(max(0.0, told_at + _NOTICE_S - now), _NOTICE_S)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise translate(error) from None
