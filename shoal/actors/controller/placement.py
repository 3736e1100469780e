"""Decides where a sandbox gets its slot: on which node, or, where none has room, what to wait for. Pure.

    the preferred regions one after another; in each
        a node that has room             → a slot is made there
        none, but a node may come there  → it waits for that region alone
    else                                 → it waits for whatever comes free in any of them

It goes on to the next region only if the one before has no room and no node can come there (`capacity.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from shoal.actors.controller.capacity import Outlook
from shoal.actors.controller.ledger import NodeView
from shoal.actors.controller.machine import Machine
from shoal.model.spec import Runtime, SandboxSpec, SlotShape


@dataclass(frozen=True, slots=True)
class Request:
    """What placement needs to know of a sandbox. Sandboxes with equal requests wait together. `cores`, `memory`
    (MiB), `pids`: its limits; `patient`: it may wait for room."""

    shape: SlotShape
    cores: float = 0.0
    memory: int = 0
    pids: int = 0
    runtime: Runtime = "runc"
    regions: tuple[str, ...] = ()
    zone: str | None = None
    spread: bool = False
    patient: bool = True

    def admits(self, node: NodeView) -> bool:
        """Whether it may run on the node when there is room."""
        return node.cordoned is None and self._allows(node.region, node.zone) and self._suits(node.machine)

    def fits(self, machine: Machine) -> bool:
        """Whether it could run on such a machine if that were empty."""
        shape = self.shape
        return (
            self._allows(machine.region, machine.zone)
            and self._suits(machine)
            and shape.cpu <= machine.cpu_shares
            and shape.memory <= machine.memory_shares
            and shape.gpu <= machine.gpus
        )

    def meets(self, other: Request) -> bool:
        """Whether some node may suit both, as far as region and zone tell."""
        regions = not self.regions or not other.regions or not set(self.regions).isdisjoint(other.regions)
        return regions and (self.zone is None or other.zone is None or self.zone == other.zone)

    @property
    def anywhere(self) -> bool:
        """Whether any node would do."""
        return not self.regions and self.zone is None and self.runtime == "runc"

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
        )


def request_for(spec: SandboxSpec) -> Request:
    """What a sandbox asks of its node."""
    r = spec.resources
    return Request(
        shape=spec.slot_shape,
        cores=r.cpu_limit,
        memory=r.memory_limit,
        pids=r.pids,
        runtime=spec.runtime,
        regions=spec.regions,
        zone=spec.zone,
        spread=spec.placement == "spread",
        patient=spec.wait_for_capacity,
    )


@dataclass(frozen=True, slots=True)
class Selector:
    """Which nodes Ray may put a slot on that waits for room. `regions`: any of these, none: all; `not_nodes`: never on
    these."""

    regions: tuple[str, ...] = ()
    zone: str | None = None
    not_nodes: tuple[str, ...] = ()

    def allows(self, node: NodeView) -> bool:
        """Whether Ray may put a slot on this node."""
        return node.id not in self.not_nodes and (not self.regions or node.region in self.regions)


ANYWHERE = Selector()


@dataclass(frozen=True, slots=True)
class OnNode:
    """A slot can be made on this node now."""

    node_id: str


@dataclass(frozen=True, slots=True)
class Wait:
    """No node has room. `selector`: where a slot may come up; `reason`: for people; `coming`: a node is launched, or
    can be."""

    selector: Selector
    reason: str
    coming: bool = False


def choose(
    request: Request, nodes: Collection[NodeView], outlook: Callable[[Callable[[Machine], bool]], Outlook]
) -> OnNode | Wait:
    """Where the next slot for `request` is made. `outlook`: whether a machine may come that a function accepts."""
    reasons: list[str] = []
    for region in request.regions or (None,):
        regions = () if region is None else (region,)
        there = [node for node in nodes if region is None or node.region == region]
        best = best_node(request, (node for node in there if node.free.covers(request.shape) and request.admits(node)))
        if best is not None:
            return OnNode(best.id)
        ahead = outlook(replace(request, regions=regions).fits)
        reasons.append(f"no room{'' if region is None else f' in {region}'}{_OUTLOOKS[ahead]}")
        if ahead in (Outlook.LAUNCHING, Outlook.LAUNCHABLE):
            return Wait(_selector(request, regions, there), "; ".join(reasons), coming=True)
    return Wait(_selector(request, request.regions, nodes), "; ".join(reasons))


_OUTLOOKS = {
    Outlook.LAUNCHING: "; a node is being launched",
    Outlook.LAUNCHABLE: "; a node can be launched",
    Outlook.EXHAUSTED: ", and no capacity for new nodes now",
    Outlook.AT_MOST: ", and as many nodes run as may",
    Outlook.NONE: "",
}


def best_node(request: Request, nodes: Iterable[NodeView]) -> NodeView | None:
    """The one to use of several that would do: of the preferred region, the fullest, or (spread) the emptiest; without
    GPUs rather than with some that would lie idle, and known rather than one that has not answered yet."""

    def cost(node: NodeView) -> tuple[int, bool, bool, float]:
        rank = request.regions.index(node.region) if len(request.regions) > 1 and node.region is not None else 0
        idle_gpu = node.total.gpu > 0 and request.shape.gpu == 0
        return rank, idle_gpu, node.machine is None, node.load if request.spread else -node.load

    return min(nodes, key=cost, default=None)


def _selector(request: Request, regions: tuple[str, ...], nodes: Iterable[NodeView]) -> Selector:
    """`nodes`: those of the regions. Those that would not do are left out by their ids."""
    return Selector(regions, request.zone, tuple(sorted(node.id for node in nodes if _misleads(request, node))))


def _misleads(request: Request, node: NodeView) -> bool:
    """Whether Ray would take the node for fit, though it is not."""
    return request.zone in (None, node.zone) and not request.admits(node)
