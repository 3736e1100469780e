"""What scaling and the controller tell each other: which nodes could come, and what waits for them.

    scaling ── report_capacity(Capacity) ──► controller
    scaling ◄── demand() -> Demand ───────── controller

Plain values. CPU in cores, memory in MiB, GPUs in whole devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NodeType:
    """A kind of node that can be launched, in one region. `cpu`, `memory`, `gpu`: what such a node gives its sandboxes;
    `max`: the most of it that may run at once."""

    name: str
    cpu: float
    memory: int
    gpu: int = 0
    region: str | None = None
    zone: str | None = None
    runtimes: tuple[str, ...] = ("runc",)
    max: int = 1


@dataclass(frozen=True, slots=True)
class Capacity:
    """What could be launched, and what is under way. `running`, `launching`: nodes by the name of their type;
    `exhausted`: regions and types that have no capacity, and until when (unix seconds) none is asked of them."""

    types: tuple[NodeType, ...] = ()
    running: Mapping[str, int] = field(default_factory=dict)
    launching: Mapping[str, int] = field(default_factory=dict)
    exhausted: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WaitingSandboxes:
    """Sandboxes that wait for room and want the same. `cpu`, `memory`, `gpu`: of each; `regions`: those that it may run
    in, the preferred ones first, none: any; `count`: how many, without those for which a
    slot is being made in room that there is; `in_ray`: for how many of them Ray was asked for room; `oldest_s`: seconds
    for which the first has waited."""

    cpu: float
    memory: int
    gpu: int
    runtime: str
    regions: tuple[str, ...]
    zone: str | None
    count: int
    oldest_s: float
    in_ray: int = 0


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """What a node does. `sandboxes`: those that it runs, starts or ends, or keeps ready for a pool; `empty_s`: seconds
    for which it has had none, None while it has any; `cordoned`: why nothing new starts there."""

    node_id: str
    region: str | None
    zone: str | None
    sandboxes: int
    empty_s: float | None
    cordoned: str | None = None


@dataclass(frozen=True, slots=True)
class Demand:
    """What waits, and which nodes are in use."""

    waiting: tuple[WaitingSandboxes, ...]
    nodes: tuple[NodeLoad, ...]
