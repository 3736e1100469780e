"""Metrics as they travel: flat series of a Prometheus registry, from the API's replicas to the controller and back.

`prometheus_client` is loaded by the functions only: the client and the sandbox actors do without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.registry import Collector


EXEC_SECONDS = "shoal_exec_overhead_seconds"
"""The histogram of what execs through the API took beside their command's own time."""


class Series(NamedTuple):
    """One line of the exposition format. `family`, `kind` and `help` are those of the metric that it belongs to."""

    family: str
    kind: str
    help: str
    name: str
    labels: tuple[tuple[str, str], ...] = ()


def flatten(collector: Collector) -> dict[Series, float]:
    """All values of a registry, without the times when they were created."""
    return {
        Series(metric.name, metric.type, metric.documentation, sample.name, tuple(sample.labels.items())): sample.value
        for metric in collector.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def exposition(values: Mapping[Series, float]) -> bytes:
    """The values in Prometheus' text format, version 0.0.4."""
    from prometheus_client import Metric, generate_latest

    families: dict[str, Metric] = {}
    for series, value in values.items():
        if series.family not in families:
            families[series.family] = Metric(series.family, series.help, series.kind)
        families[series.family].add_sample(series.name, dict(series.labels), value)
    return generate_latest(_Collected(families.values()))


class _Collected:
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics
