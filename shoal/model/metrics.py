"""Metrics as they travel: flat series of a Prometheus registry, from the API's replicas to the controller and back.

`prometheus_client` is loaded by the functions only: the client and the sandbox actors do without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
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
    """The values in Prometheus' text format, version 0.0.4. `generate_latest` takes five times as long for it, as it
    wants objects made of each value first."""
    families: dict[str, list[str]] = {}
    for series, value in values.items():
        lines = families.get(series.family)
        if lines is None:
            lines = families[series.family] = _head(series)
        labels = ",".join(f'{name}="{_escaped(each)}"' for name, each in series.labels)
        lines.append(f"{series.name}{{{labels}}} {_number(value)}" if labels else f"{series.name} {_number(value)}")
    return ("\n".join(line for lines in families.values() for line in lines) + "\n").encode("utf-8", "replace")


def _head(series: Series) -> list[str]:
    name = f"{series.family}_total" if series.kind == "counter" else series.family
    return [f"# HELP {name} {_escaped(series.help, quotes=False)}", f"# TYPE {name} {series.kind}"]


def _escaped(text: str, *, quotes: bool = True) -> str:
    if "\\" not in text and "\n" not in text and '"' not in text:
        return text
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value))
