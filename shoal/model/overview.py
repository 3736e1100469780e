"""What the cluster tells about itself at a glance: how things are now, and how they were in the last hour.

Plain values, made by the controller (`actors/controller/overview.py`). CPU in cores, memory and disk in MiB, times in
unix seconds, durations in seconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

POINT_S = 10.0
"""Seconds that one point of a series stands for."""

POINTS = 360
"""The most points of a series: an hour."""

LATELY_S = 300.0
"""Latencies of now are those of the last five minutes."""

MOST_CHARTED = 32
"""With more nodes than this, none has series of its own: the answer must stay small."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long something took: how often it was measured, half of them at most `p50` and 95 of 100 at most `p95`
    seconds. Both None where nothing was measured."""

    count: int = 0
    p50: float | None = None
    p95: float | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Sandboxes that wait for the same reason; `oldest_s`: seconds for which the first has waited."""

    why: str
    count: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class RegionNodes:
    """The nodes of a region (None: without one). `running`: those that take sandboxes; `draining`: cordoned ones."""

    region: str | None
    launching: int = 0
    running: int = 0
    draining: int = 0


@dataclass(frozen=True, slots=True)
class NodeLoadSeries:
    """What a node used, at the times of `Series.at`; None where it was not known."""

    cpu_used: Sequence[float | None]
    memory_used: Sequence[int | None]
    disk_used: Sequence[int | None]


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """One node. `used` is all that its machine uses, whoever does; `requested` what the sandboxes there have asked for.
    `series`: None where there are too many nodes (`MOST_CHARTED`)."""

    id: str
    hostname: str
    region: str | None
    alive: bool
    cordoned: str | None
    sandboxes: int
    cpu_total: float
    cpu_used: float
    cpu_requested: float
    memory_total: int
    memory_used: int
    memory_requested: int
    disk_total: int
    disk_used: int
    series: NodeLoadSeries | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """How it was. Each sequence has a value for each time in `at`, the end of `POINT_S` seconds, oldest first.

    `states`: sandboxes by state at that time; `creates_per_minute`, `ends_per_minute`: in those seconds, as a rate;
    the latencies: of those seconds, None where there were none. For tokens of all environments also what all nodes
    together use (None where no node has told), and nodes by what they do.
    """

    at: Sequence[float] = ()
    states: Mapping[str, Sequence[int]] = field(default_factory=dict)
    creates_per_minute: Sequence[float] = ()
    ends_per_minute: Sequence[float] = ()
    create_p50: Sequence[float | None] = ()
    create_p95: Sequence[float | None] = ()
    exec_p50: Sequence[float | None] | None = None
    exec_p95: Sequence[float | None] | None = None
    cpu_used: Sequence[float | None] | None = None
    memory_used: Sequence[int | None] | None = None
    disk_used: Sequence[int | None] | None = None
    nodes: Mapping[str, Sequence[int]] | None = None


@dataclass(frozen=True, slots=True)
class Overview:
    """The cluster, or one environment of it, at a glance.

    `environment`: the only one that the figures are of, None: all. `interval`: seconds of one point of `series`;
    `since`: when this controller began to count. `states`: living sandboxes. `ends`: by reason, in the last hour.
    `create`: from a create's acceptance until the sandbox runs, of the last five minutes. `exec`: what an exec took
    beside its command's own time; covers `POST …/exec` of the HTTP API, as programs in the cluster and the Python
    client run commands without the API's help. `exec`, `regions` and `nodes` are None for tokens of one environment.
    """

    at: float
    environment: str | None
    interval: float
    since: float
    states: Mapping[str, int]
    creates_per_minute: float
    ends_per_minute: float
    ends: Mapping[str, int]
    create: Latency
    exec: Latency | None
    waiting: Sequence[Waiting]
    regions: Sequence[RegionNodes] | None
    nodes: Sequence[NodeFigures] | None
    series: Series

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def after(self, since: float) -> Overview:
        """The same with the points of the series that came after a time only."""
        first = bisect_right(self.series.at, since)
        nodes = None
        if self.nodes is not None:
            nodes = [
                node if node.series is None else replace(node, series=_from(node.series, first)) for node in self.nodes
            ]
        return replace(self, series=_from(self.series, first), nodes=nodes)


S = TypeVar("S", Series, NodeLoadSeries)


def _from(series: S, first: int) -> S:
    return replace(series, **{each.name: _cut(getattr(series, each.name), first) for each in fields(series)})


def _cut(value: Any, first: int) -> Any:
    if isinstance(value, Mapping):
        return {name: each[first:] for name, each in value.items()}
    return None if value is None else value[first:]
