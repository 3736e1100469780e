"""Shoal's scaling over a simulated cloud: its real decisions, carried out through the controller's real verbs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal.actors.controller.handlers import answer, handlers
from shoal.actors.controller.parts import Parts
from shoal.cluster.scaling.deciding import IDLE, Decision, Limits, Memory, Observation, Seen, decide
from shoal.cluster.scaling.observing import capacity_of, still_waiting
from shoal.model import tasks, verbs
from shoal.model.access import INSIDE
from shoal.model.capacity import Demand, NodeType
from shoal.model.errors import ShoalError
from tests.simulation.autoscaler import Autoscaler
from tests.simulation.fleet import MachineType

JOIN_S = 600.0


def limits(kinds: Sequence[MachineType], most: int, idle_s: float) -> Limits:
    """`most`: of each type; `idle_s`: how long a node is empty before it is taken away."""
    types = tuple(NodeType(k.name, k.cpu, k.memory, region=k.region, max=most) for k in kinds)
    none = dict.fromkeys((k.name for k in kinds), 0)
    return Limits(
        types=types,
        least=none,
        prices=dict.fromkeys(none, 1.0),
        regions={},
        max_nodes=most * len(kinds),
        max_cost=None,
        idle_timeout=idle_s,
    )


@dataclass(slots=True)
class Scaling:
    """One turn after another, as `shoal.cluster.scaling.scaler` takes them."""

    autoscaler: Autoscaler
    limits: Limits
    memory: Memory = field(default_factory=Memory)

    async def turn(self, controller: Parts) -> Decision:
        """Observes, decides, carries out."""
        known = handlers(controller)
        demand: Demand = await answer(known, verbs.demand.name, (), INSIDE)
        seen = self._observe(demand)
        decision, self.memory = decide(self.limits, self.memory, seen)
        self.autoscaler.most, self.autoscaler.least = decision.most, decision.least
        for node_id in decision.uncordon:
            await answer(known, verbs.uncordon.name, (node_id,), INSIDE)
        for node_id in decision.cordon:
            await answer(known, verbs.cordon.name, (node_id, IDLE), INSIDE)
        for node_id in decision.leave:
            tasks.shared(_leave(controller, node_id), "leave")
        capacity = capacity_of(self.limits, self.memory, seen, time.time())
        await answer(known, verbs.report_capacity.name, (capacity,), INSIDE)
        return decision

    def _observe(self, demand: Demand) -> Observation:
        fleet = self.autoscaler.fleet
        loads = {load.node_id: load for load in demand.nodes}
        joined = [
            Seen(
                id=machine.id,
                type=machine.type.name,
                node_id=machine.id,
                free=(machine.free.cpu, machine.free.memory, 0.0),
                sandboxes=None if (load := loads.get(machine.id)) is None else load.sandboxes,
                empty_s=None if load is None else load.empty_s,
                cordoned=None if load is None else load.cordoned,
            )
            for machine in fleet.machines.values()
        ]
        starting = [Seen(id=launch.id, type=launch.type.name) for launch in self.autoscaler.launches]
        pending = Counter(
            (slot.shape.cpu, float(slot.shape.memory), float(slot.shape.gpu)) for slot in fleet.pending.values()
        )
        return Observation(
            now=time.monotonic(),
            machines=(*joined, *starting),
            waiting=tuple(still_waiting(demand.waiting, pending)),
            outcomes=tuple(self.autoscaler.outcomes[-200:]),
        )


async def _leave(controller: Parts, node_id: str) -> None:
    known = handlers(controller)
    try:
        await answer(known, verbs.drain_node.name, (node_id, IDLE, False, 0.0), INSIDE)
    except ShoalError:
        await asyncio.sleep(0)  # it is decided about anew
