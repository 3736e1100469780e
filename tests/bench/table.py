"""What was measured, as a table for people and as `bench.json` for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.measures import AT_LEAST, FIGURES_AT_LEAST, FIGURES_AT_MOST, PSS_AT_MOST, Measurements
from tests.bench.stats import Samples, times_better

OURS, THEIRS = "shoal", "docker-py"


def ratios(found: Measurements) -> dict[str, float]:
    """How many times better than docker-py Shoal is, by measure; and `pss_mb` and the other figures, as they are."""
    by_key = {each.key: round(times_better(each.by[OURS], each.by[THEIRS]), 2) for each in found.measured}
    figures = {each.key: round(each.samples.median, 2) for each in found.figures}
    return {**by_key, "pss_mb": round(found.idle[OURS].pss, 1), **figures}


def met(keys: dict[str, float]) -> dict[str, bool]:
    """Whether each measure with a target reached it, of those that were taken."""
    return {
        **{key: keys[key] >= least for key, least in (AT_LEAST | FIGURES_AT_LEAST).items() if key in keys},
        **{key: 0 < keys[key] <= most for key, most in FIGURES_AT_MOST.items() if key in keys},
        "pss_mb": 0 < keys["pss_mb"] <= PSS_AT_MOST,  # nothing costs nothing: that would be noise
    }


def to_dict(found: Measurements, machine: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The content of `bench.json`: the ratios first, then what they were made of."""
    keys = ratios(found)
    return {
        **keys,
        "measures": {
            **{each.key: each.what for each in (*found.measured, *found.figures)},
            "pss_mb": "memory per idle sandbox",
        },
        "targets": {
            **{key: {"at_least": least} for key, least in (AT_LEAST | FIGURES_AT_LEAST).items()},
            **{key: {"at_most": most} for key, most in FIGURES_AT_MOST.items()},
            "pss_mb": {"at_most": PSS_AT_MOST},
        },
        "met": met(keys),
        "medians": {each.key: {name: one.median for name, one in each.by.items()} for each in found.measured},
        "samples": {
            **{each.key: {name: one.to_dict() for name, one in each.by.items()} for each in found.measured},
            **{each.key: {OURS: each.samples.to_dict()} for each in found.figures},
        },
        "idle_sandbox": {name: asdict(cost) for name, cost in found.idle.items()},
        "machine": machine,
        "seconds": round(seconds, 1),
    }


def show(console: Console, found: Measurements) -> None:
    """Prints the table. A column per peer, the ratio to docker-py, and whether the target was reached."""
    keys = ratios(found)
    reached = met(keys)
    peers = sorted({name for each in found.measured for name in each.by} - {OURS, THEIRS})
    table = Table(title="Shoal beside docker-py, medians", title_justify="left")
    for heading in ("measure", THEIRS, *peers, OURS, "better by", "target", "met"):
        table.add_column(heading, justify="left" if heading == "measure" else "right", no_wrap=True)
    for each in found.measured:
        least = AT_LEAST.get(each.key)
        table.add_row(
            each.key,
            *(shown(each.by.get(name)) for name in (THEIRS, *peers, OURS)),
            f"× {keys[each.key]:.3g}",
            "" if least is None else f"× {least:g}",
            _mark(reached.get(each.key)),
        )
    ours, theirs = found.idle[OURS], found.idle[THEIRS]
    table.add_row(
        "pss_mb",
        f"{theirs.pss:.1f} MB",
        *("" for _ in peers),
        f"{ours.pss:.1f} MB",
        "",
        f"≤ {PSS_AT_MOST:g} MB",
        _mark(reached["pss_mb"]),
    )
    for figure in found.figures:
        least, most = FIGURES_AT_LEAST.get(figure.key), FIGURES_AT_MOST.get(figure.key)
        target = f"≥ {least:g}" if least is not None else f"≤ {most:g}"
        cells = ("" for _ in (THEIRS, *peers))
        table.add_row(figure.key, *cells, shown(figure.samples), "", target, _mark(reached.get(figure.key)))
    console.print(table)
    console.print(
        f"An idle sandbox: {ours.processes:.1f} processes and {ours.descriptors:.0f} file descriptors on the machine"
        f" (docker-py: {theirs.processes:.1f} and {theirs.descriptors:.0f}).",
        highlight=False,
    )


def shown(values: Samples | None) -> str:
    if values is None:
        return ""
    if values.unit == "s":
        return f"{values.median * 1000:.2f} ms" if values.median < 0.1 else f"{values.median * 1000:.0f} ms"
    return f"{values.median:,.1f} {values.unit}" if values.median < 100 else f"{values.median:,.0f} {values.unit}"


def _mark(reached: bool | None) -> str:
    return "" if reached is None else "[green]yes[/]" if reached else "[red]no[/]"
