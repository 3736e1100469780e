"""Decides where a sandbox gets its slot: on which node, or, where none has room, what to wait for. Pure.

    the first of the preferred regions with a node that has room  → a slot is made there
    none, but a node may come to one of them                      → it waits for the first such region alone
    else                                                          → it waits for whatever comes free in any of them

Room that is there goes before a node that is yet to come: that takes minutes, and may never come (`capacity.py`). Where
more wait than a preferred region has room for, those beyond go to the next at once (`slot_demand.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import inf

from shoal.actors.controller.capacity import Outlook
from shoal.actors.controller.ledger import NodeView
from shoal.actors.controller.machine import Machine
from shoal.actors.controller.room import EPSILON
from shoal.model.capacity import WaitingSandboxes
from shoal.model.spec import Runtime, SandboxSpec, SlotShape


@dataclass(frozen=True, slots=True)
class Request:
    """What placement needs to know of a sandbox. Sandboxes with equal requests wait together. `cores`, `memory`
    (MiB), `pids`, `disk` (MiB): its limits; `patient`: it may wait for room; `nodes`: the ids of those that have its
    image or can fetch it, None: any may run it; `near`: of those that have it, which are preferred to all others of
    their region; empty: it is everywhere."""

    shape: SlotShape
    cores: float = 0.0
    memory: int = 0
    pids: int = 0
    disk: int = 0
    runtime: Runtime = "runc"
    regions: tuple[str, ...] = ()
    zone: str | None = None
    spread: bool = False
    patient: bool = True
    nodes: tuple[str, ...] | None = None
    near: tuple[str, ...] = ()

    def admits(self, node: NodeView) -> bool:
        """Whether it may run on the node when there is room."""
        return (
            node.cordoned is None
            and (self.nodes is None or node.id in self.nodes)
            and self._allows(node.region, node.zone)
            and self._suits(node.machine)
        )

    def fits(self, machine: Machine) -> bool:
        """Whether it could run on such a machine if that were new and empty."""
        shape = self.shape
        return (
            self.nodes is None
            and self._allows(machine.region, machine.zone)
            and self._suits(machine)
            and shape.cpu <= machine.cpu_shares
            and shape.memory <= machine.memory_shares
            and shape.gpu <= machine.gpus
        )

    def meets(self, other: Request) -> bool:
        """Whether some node may suit both, as far as region, zone and image tell."""
        if self.nodes is not None and other.nodes is not None and set(self.nodes).isdisjoint(other.nodes):
            return False
        regions = not self.regions or not other.regions or not set(self.regions).isdisjoint(other.regions)
        return regions and (self.zone is None or other.zone is None or self.zone == other.zone)

    def as_waiting(self, count: int, oldest_s: float, in_ray: int = 0) -> WaitingSandboxes:
        """So many sandboxes that wait for room, as scaling is told of them."""
        return WaitingSandboxes(
            cpu=self.shape.cpu,
            memory=self.shape.memory,
            gpu=self.shape.gpu,
            runtime=self.runtime,
            regions=self.regions,
            zone=self.zone,
            count=count,
            oldest_s=oldest_s,
            in_ray=in_ray,
        )

    def admits_unknown(self, node_id: str | None) -> bool:
        """Whether it may run on a node of which nothing is known yet but its id."""
        elsewhere = self.nodes is not None and node_id not in self.nodes
        return not self.regions and self.zone is None and self.runtime == "runc" and not elsewhere

    def _allows(self, region: str | None, zone: str | None) -> bool:
        return (not self.regions or region in self.regions) and (self.zone is None or zone == self.zone)

    def _suits(self, machine: Machine | None) -> bool:
        """`machine`: None for a node that has not told yet what it is."""
        if machine is None:
            return self.runtime == "runc"
        return (
            self.runtime in machine.runtimes
            and self.cores <= machine.cores
            and self.memory <= machine.memory
            and self.pids <= machine.pids
            and self.disk <= machine.disk
        )


def request_for(spec: SandboxSpec, nodes: tuple[str, ...] | None = None, near: tuple[str, ...] = ()) -> Request:
    """What a sandbox asks of its node. `nodes`, `near`: as in `Request`."""
    r = spec.resources
    return Request(
        shape=spec.slot_shape,
        cores=r.cpu_limit,
        memory=r.memory_limit,
        pids=r.pids,
        disk=r.disk,
        runtime=spec.runtime,
        regions=spec.regions,
        zone=spec.zone,
        spread=spec.placement == "spread",
        patient=spec.wait_for_capacity,
        nodes=nodes,
        near=near,
    )


@dataclass(frozen=True, slots=True)
class Selector:
    """Which nodes Ray may put a slot on that waits for room. `regions`: any of these, none: all; `not_nodes`: never on
    these; `nodes`: only on these, None: on all others."""

    regions: tuple[str, ...] = ()
    zone: str | None = None
    not_nodes: tuple[str, ...] = ()
    nodes: tuple[str, ...] | None = None

    def allows(self, node: NodeView) -> bool:
        """Whether Ray may put a slot on this node."""
        named = node.id not in self.not_nodes if self.nodes is None else node.id in self.nodes
        return named and (not self.regions or node.region in self.regions)


ANYWHERE = Selector()


@dataclass(frozen=True, slots=True)
class OnNode:
    """A slot can be made on this node now."""

    node_id: str


@dataclass(frozen=True, slots=True)
class Wait:
    """No node has room. `selector`: where a slot may come up; `reason`: for people."""

    selector: Selector
    reason: str


@dataclass(frozen=True, slots=True)
class Tier:
    """The nodes of one region that a request prefers, or all nodes. `nodes`: those where it may run; `excluded`: the
    ids of those that Ray would take for fit, though they are not."""

    region: str | None
    nodes: tuple[NodeView, ...]
    excluded: tuple[str, ...]


def tiers(request: Request, nodes: Iterable[NodeView]) -> tuple[Tier, ...]:
    """The nodes for a request, the preferred region first."""
    there: dict[str | None, list[NodeView]] = {region: [] for region in request.regions or (None,)}
    for node in nodes:
        place = there.get(node.region if request.regions else None)
        if place is not None and request.zone in (None, node.zone):
            place.append(node)
    return tuple(
        Tier(
            region,
            tuple(node for node in found if request.admits(node)),
            tuple(sorted(node.id for node in found if not request.admits(node))),
        )
        for region, found in there.items()
    )


def choose(
    request: Request, preferred: Iterable[Tier], outlook: Callable[[Callable[[Machine], bool]], Outlook]
) -> OnNode | Wait:
    """Where the next slot for `request` is made. `preferred`: its tiers; `outlook`: whether a machine may come that a
    function accepts."""
    reasons: list[str] = []
    excluded: list[str] = []
    in_order = list(preferred)
    for tier in in_order:
        best = best_node(request, tier.nodes, with_room=True)
        if best is not None:
            return OnNode(best.id)
    for tier in in_order:
        regions = () if tier.region is None else (tier.region,)
        ahead = outlook(replace(request, regions=regions).fits)
        reasons.append(f"no room{'' if tier.region is None else f' in {tier.region}'}{_OUTLOOKS[ahead]}")
        if ahead in (Outlook.LAUNCHING, Outlook.LAUNCHABLE):
            return Wait(Selector(regions, request.zone, tier.excluded), "; ".join(reasons))
        excluded += tier.excluded
    if request.nodes is not None:
        there = tuple(node.id for tier in in_order for node in tier.nodes)
        return Wait(Selector(request.regions, request.zone, nodes=there), "; ".join(reasons))
    return Wait(Selector(request.regions, request.zone, tuple(sorted(excluded))), "; ".join(reasons))


_OUTLOOKS = {
    Outlook.LAUNCHING: "; a node is being launched",
    Outlook.LAUNCHABLE: "; a node can be launched",
    Outlook.EXHAUSTED: ", and no capacity for new nodes now",
    Outlook.AT_MOST: ", and as many nodes run as may",
    Outlook.NONE: "",
}


def best_node(request: Request, nodes: Iterable[NodeView], *, with_room: bool = False) -> NodeView | None:
    """The one to use of several that would do: of the preferred region, where its image is, the fullest, or (spread)
    the emptiest; without GPUs rather than with some that would lie idle, and known rather than one that has not
    answered yet. `with_room`: for one more slot, only of those that have room, and rather of those where it can start
    at once.

    It looks at each of hundreds of nodes for each create that finds no idle slot: so it is written for speed."""
    found, least = None, (0, False, False, False, False, 0.0)
    near = request.near
    shape, sign, ranked = request.shape, (1 if request.spread else -1), len(request.regions) > 1
    cpu, memory = (shape.cpu - EPSILON, shape.memory - EPSILON) if with_room else (-inf, -inf)
    for node in nodes:
        free = node.free
        if free.cpu < cpu or free.memory < memory or (with_room and not free.covers(shape)):
            continue
        rank = request.regions.index(node.region) if ranked and node.region in request.regions else 0
        busy = with_room and (node.starting > 0 or node.changing > 0 or node.short_lately) and node.busy
        far = near and node.id not in near
        cost = (rank, bool(far), busy, node.total.gpu > 0 and shape.gpu == 0, node.machine is None, sign * node.load)
        if found is None or cost < least:
            found, least = node, cost
    return found
