"""What scaling is told: which sandboxes wait for room, and what each node does."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from shoal.actors.controller.capacity import LaunchableNodes
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.ready_slots import ReadySlots
from shoal.actors.controller.slots import SlotPool
from shoal.actors.controller.supervisor import SandboxSupervisor
from shoal.model.capacity import Capacity, Demand, NodeLoad


@dataclass(slots=True)
class DemandReporter:
    """The two verbs of scaling. `gives_away`: whether the disks of stopped sandboxes on that node can be moved."""

    pool: SlotPool
    supervisor: SandboxSupervisor
    nodes: Nodes
    launchable: LaunchableNodes
    ready: ReadySlots
    gives_away: Callable[[str], bool] = lambda node_id: False
    clock: Callable[[], float] = time.monotonic
    _empty_since: dict[str, float] = field(default_factory=dict)

    def report_capacity(self, capacity: Capacity) -> None:
        """Takes in what scaling can launch and is launching."""
        self.launchable.report(capacity)

    def demand(self) -> Demand:
        """What waits, and what each node does."""
        now = self.clock()
        sandboxes, cordoned = self.look(now), self.nodes.cordoned()
        return Demand(
            waiting=(*self.pool.waiting(), *self.ready.lacking()),
            nodes=tuple(
                NodeLoad(
                    node_id=node.id,
                    region=node.region,
                    zone=node.zone,
                    sandboxes=sandboxes[node.id],
                    empty_s=None if sandboxes[node.id] else now - self._empty_since.get(node.id, now),
                    cordoned=cordoned.get(node.id),
                )
                for node in self.nodes.known_nodes()
            ),
        )

    def look(self, now: float) -> Counter[str]:
        """Notes which nodes are empty. Returns how many sandboxes each has, stopped ones too where their disks cannot
        be moved; called every second."""
        sandboxes = Counter(slot.node_id for slot in self.supervisor.slots() if slot.node_id is not None)
        for node in self.nodes.known_nodes():
            if node.info is not None and node.info.stopped and not self.gives_away(node.id):
                sandboxes[node.id] += node.info.stopped
        sandboxes.update(self.ready.node_ids())  # what is ready there would be made anew elsewhere
        empty = [node.id for node in self.nodes.known_nodes() if not sandboxes[node.id]]
        self._empty_since = {node_id: self._empty_since.get(node_id, now) for node_id in empty}
        return sandboxes
