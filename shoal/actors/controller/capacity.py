"""What nodes could still come, as scaling last reported it. Pure: the caller passes the time (unix seconds)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from shoal.actors.controller.machine import Machine
from shoal.model.capacity import Capacity, NodeType

_MOST_PIDS = 1 << 22
"""A node that does not run yet bounds no processes: `limits.pids` does."""


class Outlook(Enum):
    """Whether room may come for a request, the best first."""

    LAUNCHING = "launching"  # a node that would hold it is being launched
    LAUNCHABLE = "launchable"  # one can be launched
    EXHAUSTED = "exhausted"  # one could, but its region or type has no capacity now
    AT_MOST = "at_most"  # as many run as may
    NONE = "none"  # no type of node would hold it


@dataclass(slots=True)
class LaunchableNodes:
    """The nodes that scaling launches, or could launch. Without scaling there are none. `awaited`: there is scaling,
    but since the controller has started it has not reported yet."""

    reported: Capacity = field(default_factory=Capacity)
    awaited: bool = False
    _machines: list[tuple[NodeType, Machine]] = field(init=False)

    def __post_init__(self) -> None:
        self.report(self.reported)

    def report(self, capacity: Capacity) -> None:
        self.reported = capacity
        self.awaited = False
        self._machines = [(each, as_machine(each)) for each in capacity.types if each.max > 0]

    def machines(self) -> list[Machine]:
        """The capacity of one node of each type that may run at all."""
        return [machine for _, machine in self._machines]

    def outlook(self, holds: Callable[[Machine], bool], now: float) -> Outlook:
        """Whether one of the nodes that `holds` accepts may come."""
        found = {self._outlook(each, now) for each, machine in self._machines if holds(machine)}
        return next((each for each in Outlook if each in found), Outlook.NONE)

    def _outlook(self, each: NodeType, now: float) -> Outlook:
        launching = self.reported.launching.get(each.name, 0)
        if launching > 0:
            return Outlook.LAUNCHING
        if any(self.reported.exhausted.get(name, 0.0) > now for name in (each.name, each.region) if name is not None):
            return Outlook.EXHAUSTED
        return Outlook.LAUNCHABLE if self.reported.running.get(each.name, 0) < each.max else Outlook.AT_MOST


def as_machine(each: NodeType) -> Machine:
    """The machine that a node of this type would be."""
    return Machine(
        cores=each.cpu,
        memory=each.memory,
        cpu_shares=each.cpu,
        memory_shares=each.memory,
        gpus=each.gpu,
        region=each.region,
        runtimes=each.runtimes,
        pids=_MOST_PIDS,
        zone=each.zone,
    )
