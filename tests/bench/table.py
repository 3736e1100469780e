"""What was measured, as a table for people and as `bench.json` for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.measures import Measurements
from tests.bench.stats import Samples, times_better
from tests.bench.targets import FIGURES_AT_LEAST, FIGURES_AT_MOST, PSS_AT_MOST, at_least

OURS, THEIRS = "shoal", "docker-py"


def ratios(found: Measurements) -> dict[str, float]:
    """How many times better than docker-py Shoal is, by measure; and `pss_mb` and the other figures, as they are."""
    by_key = {each.key: round(times_better(each.by[OURS], each.by[THEIRS]), 2) for each in found.measured}
    figures = {each.key: round(each.samples.median, 2) for each in found.figures}
    idle = {"pss_mb": round(found.idle[OURS].pss, 1)} if found.idle else {}
    return {**by_key, **idle, **figures}


def met(keys: dict[str, float], engine: str) -> dict[str, bool]:
    """Whether each measure with a target reached it, of those that were taken."""
    most = FIGURES_AT_MOST | {"pss_mb": PSS_AT_MOST}
    return {
        **{key: keys[key] >= bound for key, bound in (at_least(engine) | FIGURES_AT_LEAST).items() if key in keys},
        **{key: 0 < keys[key] <= bound for key, bound in most.items() if key in keys},  # nothing costs nothing: noise
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
            **{key: {"at_least": least} for key, least in (at_least(found.engine) | FIGURES_AT_LEAST).items()},
            **{key: {"at_most": most} for key, most in FIGURES_AT_MOST.items()},
            "pss_mb": {"at_most": PSS_AT_MOST},
        },
        "engine": found.engine,
        "met": met(keys, found.engine),
        "failed": list(found.failed),
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
    reached, targets = met(keys, found.engine), at_least(found.engine)
    peers = sorted({name for each in found.measured for name in each.by} - {OURS, THEIRS})
    table = Table(title="Shoal beside docker-py, medians", title_justify="left")
    for heading in ("measure", THEIRS, *peers, OURS, "better by", "target", "met"):
        table.add_column(heading, justify="left" if heading == "measure" else "right", no_wrap=True)
    for each in found.measured:
        least = targets.get(each.key)
        table.add_row(
            each.key,
            *(shown(each.by.get(name)) for name in (THEIRS, *peers, OURS)),
            f"× {keys[each.key]:.3g}",
            "" if least is None else f"× {least:g}",
            _mark(reached.get(each.key)),
        )
    if found.idle:
        ours, theirs = (found.idle[name] for name in (OURS, THEIRS))
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
        target = "" if least is most is None else f"≥ {least:g}" if least is not None else f"≤ {most:g}"
        cells = ("" for _ in (THEIRS, *peers))
        table.add_row(figure.key, *cells, shown(figure.samples), "", target, _mark(reached.get(figure.key)))
    console.print(table)
    if found.idle:
        ours, theirs = (found.idle[name] for name in (OURS, THEIRS))
        console.print(
            f"An idle sandbox: {ours.processes:.1f} processes and {ours.descriptors:.0f} file descriptors on the"
            f" machine (docker-py: {theirs.processes:.1f} and {theirs.descriptors:.0f}).",
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
