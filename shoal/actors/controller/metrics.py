"""The cluster's metrics, as Prometheus has them: by `name{label="value"}`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping

from shoal.actors.controller.record import SandboxRecord
from shoal.model.info import NodeInfo

CREATE_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds from a create's acceptance until the sandbox runs."""

MAX_REPORTED = 5_000
"""Different counters that replicas may report: their labels must not fill memory."""


class Metrics:
    """Counters since this controller started."""

    def __init__(self) -> None:
        self._counters: Counter[str] = Counter()
        self._reported: dict[str, float] = {}
        self._buckets = [0] * len(CREATE_BUCKETS)
        self._creates = 0
        self._create_seconds = 0.0

    def accepted(self, record: SandboxRecord) -> None:
        """Counts a create that is on record."""
        self._counters[f'shoal_creates_total{{environment="{record.spec.environment}"}}'] += 1

    def started(self, record: SandboxRecord) -> None:
        """Counts a sandbox that runs."""
        took = max(0.0, time.time() - record.created_at)
        self._creates += 1
        self._create_seconds += took
        for position, bound in enumerate(CREATE_BUCKETS):
            if took <= bound:
                self._buckets[position] += 1
                break
        if record.started is not None and record.started.warm:
            self._counters["shoal_warm_hits_total"] += 1

    def ended(self, record: SandboxRecord) -> None:
        """Counts a sandbox that has ended."""
        if record.end is not None:
            self._counters[f'shoal_ends_total{{reason="{record.end.reason.value}"}}'] += 1

    def refused(self, why: str) -> None:
        """Counts a refused create. `why`: the error's code."""
        self._counters[f'shoal_creates_refused_total{{code="{why}"}}'] += 1

    def report(self, amounts: Mapping[str, float]) -> None:
        """Adds what a replica has counted since its last report."""
        for name, amount in amounts.items():
            if name in self._reported or len(self._reported) < MAX_REPORTED:
                self._reported[name] = self._reported.get(name, 0.0) + amount

    def snapshot(
        self, living: Iterable[SandboxRecord], nodes: Iterable[NodeInfo], idle_slots: int, last_event: int
    ) -> dict[str, float]:
        """All counters, with the current gauges."""
        metrics: dict[str, float] = {**self._reported, **self._counters}
        states = Counter((record.state.value, record.spec.environment) for record in living)
        for (state, environment), count in states.items():
            metrics[f'shoal_sandboxes{{environment="{environment}",state="{state}"}}'] = count
        below = 0
        for bound, count in zip(CREATE_BUCKETS, self._buckets, strict=True):
            below += count
            metrics[f'shoal_create_seconds_bucket{{le="{bound:g}"}}'] = below
        metrics['shoal_create_seconds_bucket{le="+Inf"}'] = self._creates
        metrics["shoal_create_seconds_count"] = self._creates
        metrics["shoal_create_seconds_sum"] = self._create_seconds
        metrics.setdefault("shoal_warm_hits_total", 0)
        for node in nodes:
            label = f'{{node="{node.id}"}}'
            metrics[f"shoal_node_up{label}"] = float(node.alive)
            metrics[f"shoal_node_sandboxes{label}"] = node.sandboxes
            metrics[f"shoal_node_warm_containers{label}"] = node.warm
            metrics[f"shoal_node_cpu_cores{label}"] = node.cpu_total
            metrics[f"shoal_node_cpu_free_cores{label}"] = node.cpu_free
            metrics[f"shoal_node_memory_mib{label}"] = node.memory_total
            metrics[f"shoal_node_memory_free_mib{label}"] = node.memory_free
        metrics["shoal_idle_slots"] = idle_slots
        metrics["shoal_last_event"] = last_event
        return metrics
