"""What there is: from Ray, the controller and the fleet. Blocks, and raises nothing but what is a bug."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from shoal.cluster.scaling import backoff
from shoal.cluster.scaling.contract import Machine, MachineState
from shoal.cluster.scaling.deciding import Limits, Memory, Observation, Seen
from shoal.cluster.scaling.fleet import FleetState
from shoal.cluster.scaling.ray_config import HEAD_ID, cpus
from shoal.cluster.scaling.spec import ClusterSpec, region_of, types_of
from shoal.model.capacity import Capacity, Demand, NodeLoad, NodeType, WaitingSandboxes

log = logging.getLogger("shoal.scaling")

MIB = 1 << 20


class RayNode(Protocol):
    """What is used of a node in Ray's cluster status."""

    instance_id: str
    node_id: str | None
    ray_node_type_name: str

    def available_resources(self) -> Mapping[str, float]: ...

    def total_resources(self) -> Mapping[str, float]: ...


def limits_of(cluster: ClusterSpec, cpu_overcommit: float) -> Limits:
    """What the operator allows, as decisions take it."""
    kinds = dict(types_of(cluster))
    return Limits(
        types=tuple(
            NodeType(
                name=name,
                cpu=cpus(kind, cpu_overcommit),
                memory=kind.memory,
                gpu=kind.gpus,
                region=region_of(name),
                zone=kind.zone,
                runtimes=tuple(kind.runtimes),
                max=kind.max,
            )
            for name, kind in kinds.items()
        ),
        least={name: kind.min for name, kind in kinds.items()},
        prices={name: kind.price for name, kind in kinds.items()},
        regions={name: region.max for name, region in cluster.regions.items() if region.max is not None},
        max_nodes=cluster.max_nodes,
        max_cost=cluster.max_cost_per_hour,
        idle_timeout=cluster.idle_timeout,
    )


def observe(
    now: float,
    fleet: FleetState,
    nodes: Iterable[RayNode],
    pending: Mapping[tuple[float, float, float], int],
    demand: Demand | None,
    longest_drain_s: float,
) -> Observation:
    """All of it at one moment. `nodes`: those that live, by Ray; `pending`: actors that Ray has no room for yet, by
    (CPU, memory in MiB, GPU); `demand`: None where the controller does not answer."""
    by_machine: dict[str, list[RayNode]] = {}
    for each in nodes:
        by_machine.setdefault(each.instance_id, []).append(each)
    loads = {load.node_id: load for load in demand.nodes} if demand is not None else {}
    listed = {machine.id: machine for machine in fleet.machines() if machine.type}
    # What runs counts, even if its cloud does not list it: Ray would end it for being more than there may be.
    unlisted = {
        machine_id: Machine(machine_id, there[0].ray_node_type_name, MachineState.RUNNING)
        for machine_id, there in by_machine.items()
        if machine_id not in (*listed, HEAD_ID, "")
    }
    machines = []
    for machine in (*listed.values(), *unlisted.values()):
        there = by_machine.get(machine.id, [])
        if len(there) > 1:
            log.warning("%s has joined %d times: %s", machine.id, len(there), [node.node_id for node in there])
        # One that has joined twice is in use if either node is.
        node = max(there, key=partial(_sandboxes, loads)) if there else None
        load = None if node is None else loads.get(node.node_id or "")
        machines.append(
            Seen(
                id=machine.id,
                type=machine.type,
                node_id=None if node is None else node.node_id,
                free=_free(node, load),
                sandboxes=None if load is None else load.sandboxes,
                empty_s=None if load is None else load.empty_s,
                cordoned=None if load is None else load.cordoned,
                ending=machine.state is MachineState.TERMINATING,
            )
        )
    return Observation(
        now=now,
        machines=tuple(machines),
        launching=fleet.launching,
        waiting=None if demand is None else tuple(still_waiting(demand.waiting, pending)),
        outcomes=fleet.outcomes,
        notices={notice.machine_id: min(notice.seconds, longest_drain_s) for notice in fleet.notices},
    )


def still_waiting(
    waiting: Iterable[WaitingSandboxes], pending: Mapping[tuple[float, float, float], int]
) -> Iterable[WaitingSandboxes]:
    """Those for which there is no room. A slot to which Ray has given its place is no demand, though its sandbox waits
    until it has started: of each shape, as many are left out as Ray was asked for and does not have pending."""
    groups: dict[tuple[float, float, float], list[WaitingSandboxes]] = {}
    for each in waiting:
        groups.setdefault((each.cpu, float(each.memory), float(each.gpu)), []).append(each)
    for shape, group in groups.items():
        starting = max(0, sum(each.in_ray for each in group) - pending.get(shape, 0))
        # Ray does not tell whose they are. Taken for those that have least choice, they hide a machine that is missing
        # for a moment; taken for the others, a machine would be launched too many.
        for each in sorted(group, key=lambda waiting: (waiting.zone is None, len(waiting.regions) or math.inf)):
            placed = min(starting, each.in_ray)
            starting -= placed
            if each.count > placed:
                yield replace(each, count=each.count - placed)


def pending_actors(demands: Iterable[Any]) -> dict[tuple[float, float, float], int]:
    """How many actors wait for room in Ray, by (CPU, memory in MiB, GPU). `demands`: Ray's own summary of them."""
    found: Counter[tuple[float, float, float]] = Counter()
    for demand in demands:
        for bundle in demand.bundles_by_count:
            found[_amounts(bundle.bundle)] += bundle.count
    return found


def capacity_of(limits: Limits, memory: Memory, seen: Observation, wall: float) -> Capacity:
    """What the controller is told. `wall`: now in unix seconds."""
    exhausted = {name: wall + shut.until - seen.now for name, shut in memory.closures.items() if shut.until > seen.now}
    launching = Counter(
        machine.type
        for machine in seen.machines
        if machine.id in memory.unjoined and not backoff.doubtful(memory.closures, machine.type, seen.now)
    )
    launching.update(seen.launching)
    running = Counter(machine.type for machine in seen.machines if machine.node_id is not None and not machine.ending)
    return Capacity(limits.types, dict(running), dict(launching), exhausted)


def _free(node: RayNode | None, load: NodeLoad | None) -> tuple[float, float, float]:
    """What a node has for sandboxes. Without any, all that it has: slots that are kept ready give way."""
    if node is None:
        return 0.0, 0.0, 0.0
    return _amounts(node.total_resources() if load is not None and load.sandboxes == 0 else node.available_resources())


def _sandboxes(loads: Mapping[str, Any], node: RayNode) -> int:
    load = loads.get(node.node_id or "")
    return -1 if load is None else int(load.sandboxes)


def _amounts(resources: Mapping[str, float]) -> tuple[float, float, float]:
    return (
        round(resources.get("CPU", 0.0), 4),
        float(round(resources.get("memory", 0.0) / MIB)),
        float(resources.get("GPU", 0.0)),
    )
