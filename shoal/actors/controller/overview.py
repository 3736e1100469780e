"""The cluster at a glance: puts together what the dashboard's first page draws.

Asked by every open dashboard each second or two, so what it takes to answer is kept for a second.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from shoal.actors.controller.accounts import Accounts
from shoal.actors.controller.activity import Activity, interval_at
from shoal.actors.controller.ledger import NodeView
from shoal.actors.controller.nodes import Node, Nodes
from shoal.actors.controller.registry import Registry
from shoal.actors.controller.slots import SlotPool
from shoal.model.access import ANY_ENVIRONMENT, Caller
from shoal.model.overview import (
    MOST_CHARTED,
    POINT_S,
    POINTS,
    Latency,
    NodeFigures,
    NodeLoadSeries,
    Overview,
    RegionNodes,
    Series,
    Waiting,
)
from shoal.model.states import TERMINAL, State

_FRESH_S = 1.0
_MOST_REASONS = 20

T = TypeVar("T")

States = dict[str, Counter[str]]
"""Living sandboxes by environment and state."""

LIVING = tuple(state.value for state in State if state not in TERMINAL)


@dataclass(frozen=True, slots=True)
class _Load:
    """What all nodes used together at the end of an interval, and each where there are few. None: none has told."""

    cpu: float | None
    memory: int | None
    disk: int | None
    regions: tuple[RegionNodes, ...]
    nodes: Mapping[str, tuple[float, int, int]]


@dataclass(slots=True)
class OverviewBook:
    """`clock`: unix seconds."""

    registry: Registry
    nodes: Nodes
    pool: SlotPool
    accounts: Accounts
    activity: Activity
    clock: Callable[[], float] = time.time
    _loads: deque[tuple[int, _Load]] = field(default_factory=lambda: deque(maxlen=POINTS))
    _kept: dict[object, tuple[float, object]] = field(default_factory=dict)

    async def turn(self) -> None:
        """Closes an interval of the series; called every ten seconds."""
        now = self.clock()
        self.activity.close_interval(now, self._states())
        number = interval_at(now)
        if not self._loads or self._loads[-1][0] < number:
            self._loads.append((number, self._load()))

    def overview(self, environment: str | None, since: float | None, caller: Caller) -> Overview:
        """The figures that the caller may see; of the series only what came after `since`."""
        everywhere = caller.environment == ANY_ENVIRONMENT
        if environment is None and not everywhere:
            environment = caller.environment
        if environment is not None:
            self.accounts.environment(environment, caller)
        whole = self._fresh(("overview", environment, everywhere), lambda: self._make(environment, everywhere))
        return whole if since is None else whole.after(since)

    # -- putting it together ------------------------------------------------------------------------

    def _fresh(self, key: object, make: Callable[[], T]) -> T:
        """What `make` gave within the last second, else what it gives now."""
        now = self.clock()
        if key not in self._kept or not 0 <= now - self._kept[key][0] < _FRESH_S:
            self._kept = {k: v for k, v in self._kept.items() if 0 <= now - v[0] < _FRESH_S}
            self._kept[key] = now, make()
        found: T = self._kept[key][1]  # type: ignore[assignment]
        return found

    def _make(self, environment: str | None, everywhere: bool) -> Overview:
        now = self.clock()
        creates, ends, create = self.activity.lately(environment, now)
        by_interval, execs = self.activity.execs(now)
        states = self._fresh("states", self._states)
        counts: Mapping[str, int] = states.get(environment, {}) if environment is not None else _sum(states.values())
        return Overview(
            at=now,
            environment=environment,
            interval=POINT_S,
            since=self.activity.began,
            states={state: counts.get(state, 0) for state in LIVING},
            creates_per_minute=creates,
            ends_per_minute=ends,
            ends=dict(self.activity.ends(environment)),
            create=create,
            exec=execs if everywhere else None,
            waiting=self._waiting(environment),
            regions=self._fresh("regions", self._regions) if everywhere else None,
            nodes=self._fresh("nodes", self._node_figures) if everywhere else None,
            series=self._series(environment, by_interval if everywhere else None),
        )

    def _states(self) -> States:
        found: States = defaultdict(Counter)
        for record in self.registry.live():
            if not record.hidden:
                found[record.spec.environment][record.state.value] += 1
        return found

    def _waiting(self, environment: str | None) -> list[Waiting]:
        """The reasons for which most wait."""
        now = self.pool.stock.clock()
        counts: dict[str, tuple[int, float]] = {}
        for why, where, count, since in self.pool.waiting_callers():
            if environment in (None, where):
                known, oldest = counts.get(why, (0, since))
                counts[why] = known + count, min(oldest, since)
        found = [Waiting(why, count, round(now - since, 1)) for why, (count, since) in counts.items()]
        return sorted(found, key=lambda each: -each.count)[:_MOST_REASONS]

    def _regions(self) -> list[RegionNodes]:
        reported = self.pool.stock.launchable.reported
        region_of = {each.name: each.region for each in reported.types}
        launching: Counter[str | None] = Counter()
        for name, count in reported.launching.items():
            launching[region_of.get(name)] += count
        running: Counter[str | None] = Counter()
        draining: Counter[str | None] = Counter()
        for node in self.nodes.known_nodes():
            if node.info is not None and node.missing_since is None:
                (running if node.id not in self.nodes.cordons else draining)[node.region] += 1
        regions = {region for counts in (launching, running, draining) for region, count in counts.items() if count}
        return [
            RegionNodes(region, launching[region], running[region], draining[region])
            for region in sorted(regions, key=lambda region: region or "")
        ]

    def _load(self) -> _Load:
        told = [node for node in self.nodes.known_nodes() if node.info is not None]
        used = {n.id: (n.info.cpu_used, n.info.memory_used, n.info.disk_used) for n in told if n.info is not None}
        regions = tuple(self._regions())
        if not used:
            return _Load(None, None, None, regions, {})
        cpu, memory, disk = (sum(each[part] for each in used.values()) for part in range(3))
        return _Load(round(cpu, 2), int(memory), int(disk), regions, used if len(used) <= MOST_CHARTED else {})

    def _node_figures(self) -> list[NodeFigures]:
        cordoned, ledger = self.nodes.cordoned(), self.pool.stock.ledger.nodes
        loads = [load for _, load in self._loads_of(self.activity.closed)]
        known = self.nodes.known_nodes()
        charted = len(known) <= MOST_CHARTED
        return [
            _figures(node, cordoned.get(node.id), ledger.get(node.id), _charts(node.id, loads) if charted else None)
            for node in known
            if node.info is not None
        ]

    def _loads_of(self, numbers: Iterable[int]) -> list[tuple[int, _Load]]:
        kept = dict(self._loads)
        none = _Load(None, None, None, (), {})
        return [(number, kept.get(number, none)) for number in numbers]

    def _series(self, environment: str | None, execs: Mapping[int, Latency] | None) -> Series:
        numbers = [*self.activity.closed]
        kept = self.activity.intervals(environment)
        found = [kept.get(number) for number in numbers]
        per_minute = 60 / POINT_S
        series = Series(
            at=[number * POINT_S for number in numbers],
            states={state: [0 if one is None else one.states.get(state, 0) for one in found] for state in LIVING},
            creates_per_minute=[0 if one is None else one.creates * per_minute for one in found],
            ends_per_minute=[0 if one is None else one.ends.total() * per_minute for one in found],
            create_p50=[None if one is None else one.create.p50 for one in found],
            create_p95=[None if one is None else one.create.p95 for one in found],
        )
        if execs is None:
            return series
        loads = [load for _, load in self._loads_of(numbers)]
        none = Latency()
        return replace(
            series,
            exec_p50=[execs.get(number, none).p50 for number in numbers],
            exec_p95=[execs.get(number, none).p95 for number in numbers],
            cpu_used=[load.cpu for load in loads],
            memory_used=[load.memory for load in loads],
            disk_used=[load.disk for load in loads],
            nodes={
                "launching": [sum(region.launching for region in load.regions) for load in loads],
                "running": [sum(region.running for region in load.regions) for load in loads],
                "draining": [sum(region.draining for region in load.regions) for load in loads],
            },
        )


def _sum(counts: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def _charts(node_id: str, loads: Sequence[_Load]) -> NodeLoadSeries:
    found = [load.nodes.get(node_id, (None, None, None)) for load in loads]
    return NodeLoadSeries([each[0] for each in found], [each[1] for each in found], [each[2] for each in found])


def _figures(node: Node, cordoned: str | None, view: NodeView | None, series: NodeLoadSeries | None) -> NodeFigures:
    assert node.info is not None
    info = node.info
    return NodeFigures(
        id=node.id,
        hostname=node.hostname or info.hostname,
        region=node.region,
        alive=node.missing_since is None and node.error is None,
        cordoned=cordoned,
        sandboxes=info.sandboxes,
        cpu_total=info.cpu_total,
        cpu_used=info.cpu_used,
        cpu_requested=0.0 if view is None else round(view.held.cpu, 3),
        memory_total=info.memory_total,
        memory_used=info.memory_used,
        memory_requested=0 if view is None else int(view.held.memory),
        disk_total=info.disk_total,
        disk_used=info.disk_used,
        series=series,
    )
