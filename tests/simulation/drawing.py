"""The curves of a run, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.simulation.day import PER_NODE, REGIONS, Figures, Scenario


def draw(runs: Sequence[tuple[Scenario, Figures]], target: Path) -> None:
    """One column for each run: its sandboxes above, its machines below."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(2, len(runs), figsize=(8 * len(runs), 8), squeeze=False, constrained_layout=True)
    for column, (scenario, figures) in enumerate(runs):
        above, below = axes[0][column], axes[1][column]
        above.set_title(f"{scenario.name}: {figures.creates:,} creates, {figures.node_lost:,} lost with their machines")
        above.plot(figures.at, figures.live, label="live")
        above.plot(figures.at, figures.waiting, label="waiting")
        above.set_ylabel("sandboxes")
        below.stackplot(
            figures.at,
            *(figures.nodes[region] for region in REGIONS),
            figures.launching,
            labels=[*REGIONS, "launching"],
            alpha=0.8,
        )
        below.plot(figures.at, figures.needed, "k--", linewidth=1, label=f"needed ({PER_NODE} each)")
        below.set_ylabel("machines")
        below.set_xlabel("hours")
        for axis in (above, below):
            axis.legend(loc="upper left")
            axis.grid(alpha=0.3)
            for hour, _ in (
                *scenario.bursts,
                *scenario.losses,
                *([scenario.lost_region] if scenario.lost_region else []),
            ):
                axis.axvline(hour, color="grey", linewidth=0.5)
    drawing.savefig(target, dpi=110)
    pyplot.close(drawing)
