"""What `cluster.yaml` may say: one typed model, unknown keys refused.

`reading.py` reads the file. A node type's full name is `<region>.<type>`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

NAME = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
Name = Annotated[str, Field(pattern=NAME)]
LabelName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9./_-]{0,61}[a-zA-Z0-9])?$")]
LabelValue = Annotated[str, Field(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?$")]
Count = Annotated[int, Field(ge=0, le=10_000)]
Price = Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class _Section(BaseModel):
    # Strict: `min: "3"` and `spot: yes` for a word are mistakes, and are told as such.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class NodeTypeSpec(_Section):
    """A kind of machine in a region."""

    cpus: Annotated[int, Field(ge=1, le=4096)]
    """Cores"""
    memory: Annotated[int, Field(ge=512)]
    """MiB"""
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    runtimes: Annotated[list[Literal["runc", "runsc"]], Field(min_length=1)] = ["runc"]
    """What isolates sandboxes there"""
    zone: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Only in this zone of the region; none: in any"""
    labels: dict[LabelName, LabelValue] = {}
    """Further Ray labels of its nodes"""
    min: Count = 0
    """Nodes that are kept even if they are idle"""
    max: Count
    """The most nodes"""
    price: Price = 0.0
    """Of an hour, for `max_cost_per_hour`"""

    @model_validator(mode="after")
    def _check(self) -> NodeTypeSpec:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max {self.max}: min must not be above max")
        return self


class AwsTypeSpec(NodeTypeSpec):
    """A kind of machine on AWS."""

    instance_type: Annotated[str, Field(pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")]
    """As EC2 calls it: `m7i.4xlarge`"""
    spot: Literal["never", "prefer", "only"] = "never"
    """`prefer`: on demand where there is no spot capacity"""
    disk: Annotated[int, Field(ge=8, le=65_536)] = 100
    """GiB of the root volume"""
    image: Annotated[str, Field(pattern=r"^ami-[0-9a-f]+$")] | None = None
    """In place of the region's"""


class LocalTypeSpec(NodeTypeSpec):
    """A kind of pretend machine."""


class RegionSpec(_Section):
    """A region. The order of the regions in the file is that in which they are used where a sandbox does not say."""

    max: Count | None = None
    """The most nodes of all its types together; none: as its types say"""


class AwsRegionSpec(RegionSpec):
    """A region of AWS."""

    image: Annotated[str, Field(pattern=r"^ami-[0-9a-f]+$")]
    """An image with Shoal, of the head's version, installed"""
    subnets: Annotated[dict[str, Annotated[str, Field(pattern=r"^subnet-[0-9a-f]+$")]], Field(min_length=1)]
    """Zone: subnet, in the order in which they are tried"""
    security_groups: Annotated[list[Annotated[str, Field(pattern=r"^sg-[0-9a-f]+$")]], Field(min_length=1)]
    """They let the cluster's nodes reach one another, and nobody else reach Ray's ports"""
    key: str | None = None
    """A key pair, to log in with"""
    instance_profile: str | None = None
    """Its name: what the nodes may do"""
    types: Annotated[dict[Name, AwsTypeSpec], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> AwsRegionSpec:
        for name, kind in self.types.items():
            if kind.zone is not None and kind.zone not in self.subnets:
                raise ValueError(f"types.{name}.zone is {kind.zone}, for which there is no subnet")
        return self


class LocalRegionSpec(RegionSpec):
    """A pretend region on this machine."""

    types: Annotated[dict[Name, LocalTypeSpec], Field(min_length=1)]


class HeadSpec(_Section):
    """The machine on which `shoal cluster up` runs."""

    address: Annotated[str, Field(min_length=1, max_length=63)]
    """What nodes reach it by: an address of its own in the network that they share"""
    port: Annotated[int, Field(ge=1, le=65_535)] | None = None
    """Ray's; none: 6379 if that is free"""
    region: Name | None = None
    """Where it is, for sandboxes that ask for it"""


class LocalHeadSpec(HeadSpec):
    """The head of pretend regions."""

    address: Annotated[str, Field(min_length=1, max_length=63)] = "127.0.0.2"
    """A loopback address; at 127.0.0.1 Ray takes no other nodes"""


class _Cluster(_Section):
    name: Name
    """Marks the cluster's machines: two clusters of one account must not share it"""
    idle_timeout: Seconds = 300.0
    """Seconds for which a node is empty before it is taken away"""
    join_timeout: Seconds = 600.0
    """Seconds from its launch after which a machine that is no node yet is taken away"""
    drain_timeout: Seconds = 110.0
    """Seconds that sandboxes have to end on a spot machine with a notice, at most; AWS gives two minutes"""
    max_nodes: Count = 1000
    """The most nodes of all regions together"""
    max_cost_per_hour: Price | None = None
    """The most that all nodes together may cost, by the prices of their types; none: no such limit"""
    launch_batch: Annotated[int, Field(ge=1, le=100)] = 20
    """The most machines in one request"""
    launches_at_once: Annotated[int, Field(ge=1, le=1000)] = 100
    """The most machines that are being launched"""


class AwsCluster(_Cluster):
    """A cluster on AWS."""

    provider: Literal["aws"]
    head: HeadSpec
    regions: Annotated[dict[Name, AwsRegionSpec], Field(min_length=1)]
    profile: str | None = None
    """A profile of ~/.aws/config; none: boto3's usual way, such as the head's instance profile"""
    tags: dict[Annotated[str, Field(min_length=1, max_length=128)], Annotated[str, Field(max_length=256)]] = {}
    """Further tags of every machine and volume"""
    setup: list[str] = []
    """Shell commands that a machine runs before it joins"""
    token_command: str | None = None
    """Prints Ray's token on the node, for example out of a secrets manager; none: it is in the machine's user data,
    which whoever may describe the account's machines can read
    """

    @model_validator(mode="after")
    def _check(self) -> AwsCluster:
        _check_limits(self)
        return self


class LocalCluster(_Cluster):
    """Pretend regions on this machine, for trying and for tests."""

    provider: Literal["local"]
    head: LocalHeadSpec = LocalHeadSpec()
    regions: Annotated[dict[Name, LocalRegionSpec], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> LocalCluster:
        _check_limits(self)
        return self


ClusterSpec = AwsCluster | LocalCluster

CLUSTER_SPEC: TypeAdapter[ClusterSpec] = TypeAdapter(Annotated[ClusterSpec, Field(discriminator="provider")])


def types_of(cluster: ClusterSpec) -> Iterator[tuple[str, NodeTypeSpec]]:
    """(full name, type) of every node type, in the order of the file."""
    regions: Mapping[str, AwsRegionSpec | LocalRegionSpec] = cluster.regions
    for region, of in regions.items():
        for name, kind in of.types.items():
            yield f"{region}.{name}", kind


def region_of(type_name: str) -> str:
    """The region of a node type by its full name."""
    return type_name.partition(".")[0]


def _check_limits(cluster: ClusterSpec) -> None:
    """Whether the limits can hold together. Raises `ValueError`."""
    kinds = dict(types_of(cluster))
    regions: Mapping[str, AwsRegionSpec | LocalRegionSpec] = cluster.regions
    for name, region in regions.items():
        least = sum(kind.min for kind in region.types.values())
        if region.max is not None and least > region.max:
            raise ValueError(f"regions.{name}.max is {region.max}, but the min of its types together is {least}")
    least = sum(kind.min for kind in kinds.values())
    if least > cluster.max_nodes:
        raise ValueError(f"max_nodes is {cluster.max_nodes}, but the min of all types together is {least}")
    if cluster.max_cost_per_hour is not None:
        unpriced = [name for name, kind in kinds.items() if kind.price == 0]
        if unpriced:
            raise ValueError(f"max_cost_per_hour needs the price of every type; {unpriced[0]} has none")
        cost = sum(kind.min * kind.price for kind in kinds.values())
        if cost > cluster.max_cost_per_hour:
            raise ValueError(
                f"max_cost_per_hour is {cluster.max_cost_per_hour:g}, but the min of all types together costs {cost:g}"
            )
