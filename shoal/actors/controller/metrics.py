"""The cluster's metrics: what this controller counts, what replicas report, and what there is now."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shoal.actors.controller.activity import Activity
from shoal.actors.controller.kept_pool import PoolFigures
from shoal.actors.controller.record import SandboxRecord
from shoal.model import tasks
from shoal.model.info import NodeInfo
from shoal.model.metrics import Series, flatten

CREATE_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds from a create's acceptance until the sandbox runs."""

MAX_REPORTED = 5_000
"""Different series that replicas may report: their labels must not fill memory."""

_NODE_GAUGES: dict[str, tuple[str, Callable[[NodeInfo], float]]] = {
    "up": ("Whether the node answers", lambda node: node.alive),
    "sandboxes": ("Sandboxes on the node", lambda node: node.sandboxes),
    "warm_containers": ("Warm containers on the node", lambda node: node.warm),
    "remains": ("Ended sandboxes whose files are not removed yet", lambda node: node.remains),
    "cpu_cores": ("Cores of the node", lambda node: node.cpu_total),
    "cpu_free_cores": ("Cores not requested by sandboxes", lambda node: node.cpu_free),
    "memory_mib": ("Memory of the node", lambda node: node.memory_total),
    "memory_free_mib": ("Memory not requested by sandboxes", lambda node: node.memory_free),
}


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
        self._sandboxes = Gauge("shoal_sandboxes", "Living sandboxes", ["environment", "state"], registry=registry)
        self._idle_slots = Gauge("shoal_idle_slots", "Sandbox actors without a sandbox", registry=registry)
        self._last_event = Gauge("shoal_last_event", "Id of the newest event", registry=registry)
        self._nodes = {
            name: Gauge(f"shoal_node_{name}", text, ["node"], registry=registry)
            for name, (text, _) in _NODE_GAUGES.items()
        }

    def accepted(self, record: SandboxRecord) -> None:
        """A create is on record."""
        self._creates.labels(record.spec.environment).inc()
        self._activity.accepted(record.spec.environment)

    def started(self, record: SandboxRecord) -> None:
        """A sandbox runs."""
        seconds = max(0.0, time.time() - record.created_at)
        self._create_seconds.observe(seconds)
        self._activity.started(record.spec.environment, seconds)
        if record.started is not None and record.started.warm:
            self._warm_hits.inc()

    def ended(self, record: SandboxRecord) -> None:
        """A sandbox has ended."""
        if record.end is not None:
            self._ends.labels(record.end.reason.value).inc()
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

    def snapshot(
        self,
        living: Iterable[SandboxRecord],
        nodes: Iterable[NodeInfo],
        idle_slots: int,
        last_event: int,
        pools: Iterable[PoolFigures] = (),
    ) -> dict[Series, float]:
        """All values, with the present state of the cluster."""
        self._sandboxes.clear()
        states = Tally((record.spec.environment, record.state.value) for record in living)
        for labels, count in states.items():
            self._sandboxes.labels(*labels).set(count)
        for gauge in self._nodes.values():
            gauge.clear()
        for node in nodes:
            for name, (_, value) in _NODE_GAUGES.items():
                self._nodes[name].labels(node.id).set(value(node))
        self._idle_slots.set(idle_slots)
        self._last_event.set(last_event)
        return {**flatten(self._registry), **_task_failures(), **_pool_series(pools), **self._reported}


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
