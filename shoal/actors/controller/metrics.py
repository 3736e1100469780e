"""The cluster's metrics: what this controller counts, what replicas report, and what there is now."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram

from shoal.actors.controller.activity import Activity
from shoal.actors.controller.kept_pool import PoolFigures
from shoal.actors.controller.ledger import NodeView
from shoal.actors.controller.nodes import Node
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.room import Amount
from shoal.model import tasks
from shoal.model.info import NodeInfo
from shoal.model.metrics import Series, flatten
from shoal.model.spec import MIB

CREATE_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds from a create's acceptance until the sandbox runs."""

MAX_REPORTED = 5_000
"""Different series that replicas may report: their labels must not fill memory."""

_NODE_GAUGES: dict[str, tuple[str, Callable[[NodeInfo, Amount], float]]] = {
    "sandboxes": ("Sandboxes on the node", lambda node, _: node.sandboxes),
    "warm_containers": ("Warm containers on the node", lambda node, _: node.warm),
    "remains": ("Ended sandboxes whose files are not removed yet", lambda node, _: node.remains),
    "mounts": ("Volumes and the like that it has mounted", lambda node, _: node.mounts),
    "mounts_still": ("Of these, those that do not answer", lambda node, _: node.mounts_still),
    "cpu_cores": ("Cores of the machine", lambda node, _: node.cpu_total),
    "cpu_used_cores": ("Cores that the machine uses, whoever does", lambda node, _: node.cpu_used),
    "cpu_requested_cores": ("Cores that its sandboxes requested", lambda _, held: held.cpu),
    "memory_bytes": ("Memory of the machine", lambda node, _: node.memory_total * MIB),
    "memory_used_bytes": ("Memory that the machine uses, whoever does", lambda node, _: node.memory_used * MIB),
    "memory_requested_bytes": ("Memory that its sandboxes requested", lambda _, held: held.memory * MIB),
    "disk_bytes": ("File system of the sandboxes' disks", lambda node, _: node.disk_total * MIB),
    "disk_used_bytes": ("What of it is used, by whomever", lambda node, _: node.disk_used * MIB),
}


@dataclass(frozen=True, slots=True)
class Present:
    """The cluster as it is. `waiting`: (why, environment, how many, for how many seconds)."""

    living: Iterable[SandboxRecord] = ()
    nodes: Iterable[Node] = ()
    ledger: Mapping[str, NodeView] = field(default_factory=dict)
    cordoned: Collection[str] = ()
    waiting: Iterable[tuple[str, str, int, float]] = ()
    idle_slots: int = 0
    last_event: int = 0
    pools: Iterable[PoolFigures] = ()


class Metrics:
    """What has been counted since this controller started. `activity` is told, too."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._registry = registry = CollectorRegistry()
        self._reported: dict[Series, float] = {}
        self._creates = Counter("shoal_creates", "Creates accepted", ["environment"], registry=registry)
        self._refused = Counter("shoal_creates_refused", "Creates refused, by error", ["code"], registry=registry)
        self._ends = Counter("shoal_ends", "Sandboxes that ended, by reason", ["reason"], registry=registry)
        self._warm_hits = Counter("shoal_warm_hits", "Creates that got a warm container", registry=registry)
        self._create_seconds = Histogram(
            "shoal_create_seconds",
            "From a create's acceptance until the sandbox runs",
            buckets=CREATE_BUCKETS,
            registry=registry,
        )

    def accepted(self, record: SandboxRecord) -> None:
        """A create is on record."""
        self._creates.labels(record.spec.environment).inc()
        if not record.hidden:
            self._activity.accepted(record.spec.environment)

    def started(self, record: SandboxRecord) -> None:
        """A sandbox runs."""
        seconds = max(0.0, time.time() - record.created_at)
        self._create_seconds.observe(seconds)
        if not record.hidden:
            self._activity.started(record.spec.environment, seconds)
        if record.started is not None and record.started.warm:
            self._warm_hits.inc()

    def ended(self, record: SandboxRecord) -> None:
        """A sandbox has ended."""
        if record.end is not None:
            self._ends.labels(record.end.reason.value).inc()
            if not record.hidden:
                self._activity.ended(record.spec.environment, record.end.reason.value)

    def refused(self, code: str) -> None:
        """A create was refused with an error of this code."""
        self._refused.labels(code).inc()

    def report(self, amounts: Mapping[Series, float]) -> None:
        """Adds what a replica has counted since its last report."""
        self._activity.reported(amounts)
        for series, amount in amounts.items():
            if series in self._reported or len(self._reported) < MAX_REPORTED:
                self._reported[series] = self._reported.get(series, 0.0) + amount

    def snapshot(self, now: Present) -> dict[Series, float]:
        """All values, with the present state of the cluster."""
        return {
            **flatten(self._registry),
            **_present(now),
            **_node_series(now),
            **_task_failures(),
            **_pool_series(now.pools),
            **self._reported,
        }


def _gauge(name: str, about: str, value: float, **labels: str) -> tuple[Series, float]:
    return Series(name, "gauge", about, name, tuple(labels.items())), float(value)


def _present(now: Present) -> dict[Series, float]:
    states = Tally((record.spec.environment, record.state.value) for record in now.living)
    found = dict(
        _gauge("shoal_sandboxes", "Living sandboxes", count, environment=environment, state=state)
        for (environment, state), count in states.items()
    )
    waiting: Tally[str] = Tally()
    oldest = 0.0
    for _, environment, count, seconds in now.waiting:
        waiting[environment] += count
        oldest = max(oldest, seconds)
    about = "Sandboxes that wait for room"
    found |= dict(_gauge("shoal_waiting_sandboxes", about, n, environment=each) for each, n in waiting.items())
    return found | dict(
        (
            _gauge("shoal_waiting_oldest_seconds", "For how long the first of those that wait has waited", oldest),
            _gauge("shoal_idle_slots", "Sandbox actors without a sandbox", now.idle_slots),
            _gauge("shoal_last_event", "Id of the newest event", now.last_event),
        )
    )


def _node_series(now: Present) -> dict[Series, float]:
    found: dict[Series, float] = {}
    for node in now.nodes:
        if node.info is None:
            continue
        names = {"node": node.id, "hostname": node.hostname or node.info.hostname, "region": node.region or ""}
        alive = node.missing_since is None and node.error is None
        view = now.ledger.get(node.id)
        held = Amount() if view is None else view.held
        for name, about, value in (
            ("info", "What the node is; always 1", 1.0),
            ("up", "Whether the node answers", alive),
            ("cordoned", "Whether no new sandbox starts there", node.id in now.cordoned),
        ):
            labels = {**names, "engine": node.info.engine} if name == "info" else {"node": node.id}
            found |= dict((_gauge(f"shoal_node_{name}", about, value, **labels),))
        for name, (about, of) in _NODE_GAUGES.items():
            series, value = _gauge(f"shoal_node_{name}", about, of(node.info, held), node=node.id)
            found[series] = value
        for series, value in node.series.items():
            found[series._replace(labels=(("node", node.id), *series.labels))] = value
    return found


def _task_failures() -> dict[Series, float]:
    family, about = "shoal_task_failures", "Failures of the controller's background tasks, which are run again"
    return {
        Series(family, "counter", about, f"{family}_total", (("task", name),)): float(count)
        for name, count in tasks.failures.items()
    }


def _pool_series(pools: Iterable[PoolFigures]) -> dict[Series, float]:
    found: dict[Series, float] = {}
    for pool in pools:
        environment, _, name = pool.label.partition("/")
        labels = (("environment", environment), ("pool", name))
        for metric, about, value in (
            (
                "shoal_pool_ready",
                "Sandboxes that are ready; without a pool: of shapes created lately",
                pool.ready,
            ),
            ("shoal_pool_making", "Sandboxes that are being made ready", pool.making),
        ):
            found[Series(metric, "gauge", about, metric, labels)] = float(value)
        family, about = "shoal_pool_takes", "Creates that a pool could have served, by whether it did"
        for hit, count in (("true", pool.taken), ("false", pool.missed)):
            found[Series(family, "counter", about, f"{family}_total", (*labels, ("ready", hit)))] = float(count)
    return found
