"""Takes the runs, prints their figures, writes and draws them: `python -m tests.simulation`, or `make simulate`."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.simulation.apart import figures_of_load, say
from tests.simulation.clock import Clock, run, simulated

TARGETS: dict[str, tuple[float, str]] = {
    "create_p99_ms": (50.0, "a create in the controller at 300/s with 10,000 live, 99th percentile"),
    "list_page_p99_ms": (50.0, "a page of a list meanwhile, 99th percentile"),
    "restart_s": (5.0, "a restart of the controller with 10,000 live"),
    "scheduling_delay_p99_s": (
        1.0,
        "beyond what starts take, from a machine's joining to the start of what waited for it, 99th percentile",
    ),
    "over_provisioning": (0.2, "machines more than needed after a burst, as a part of those needed"),
    "ended_by_scaling": (0.0, "live sandboxes ended by scaling down in 24 simulated hours"),
}
"""The most that each figure may be."""

_MEMORY = Path("/dev/shm")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build"), help="directory of the figures (%(default)s)")
    parser.add_argument("--short", action="store_true", help="a tenth of it, for a look whether all still works")
    parser.add_argument("--seed", type=int, default=7, help="of all that happens at random (%(default)s)")
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)  # lost machines are meant
    # In a process of its own: what is imported there keeps the real clock.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        figures = apart.submit(figures_of_load, arguments.short).result()
    with simulated() as clock:
        figures |= _days(clock, arguments.output, arguments.short, arguments.seed)
    missed = [name for name, (most, _) in TARGETS.items() if figures[name] > most]
    for name, value in figures.items():
        most, about = TARGETS.get(name, (math.inf, ""))
        verdict = "" if math.isinf(most) else f"  (at most {most:g}{', MISSED' if name in missed else ''}: {about})"
        print(f"{name:28} {value:10.3f}{verdict}")
    (arguments.output / "simulation.json").write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if missed and not arguments.short else 0


def _days(clock: Clock, output: Path, short: bool, seed: int) -> dict[str, float]:
    # Only now: what it imports keeps the clock that it finds.
    from shoal.model.settings import Settings
    from tests.simulation.day import DAY, HOUR, Run, over_provisioned
    from tests.simulation.drawing import draw
    from tests.simulation.load import quantile

    begun, runs = time.perf_counter(), []
    for scenario in (replace(DAY, hours=4.0),) if short else (DAY, HOUR):
        # In memory: a disk's syncs would take a fifth of the time, and say nothing about decisions.
        with TemporaryDirectory(prefix="shoal-day-", dir=_MEMORY if _MEMORY.is_dir() else None) as directory:
            settings = Settings.model_validate(
                {"state_dir": directory, "run_dir": directory, "limits": {"create_deadline": 3600.0}}
            )
            clock.now = 0.0
            runs.append((scenario, run(clock, Run(scenario, settings, seed).run(say))))
    draw(runs, output / "simulation.png")
    delays = [delay for _, figures in runs for delay in figures.delays]
    return {
        "scheduling_delay_p99_s": quantile(delays, 0.99),
        "over_provisioning": max(over_provisioned(figures, scenario.bursts) for scenario, figures in runs),
        "ended_by_scaling": float(sum(figures.ended_by_scaling for _, figures in runs)),
        "lost_with_machines": float(sum(figures.node_lost for _, figures in runs)),
        "failed_creates": float(sum(sum(figures.failed.values()) for _, figures in runs)),
        "most_live": float(max(max(figures.live) for _, figures in runs)),
        "most_nodes": float(max(max(map(sum, zip(*figures.nodes.values(), strict=True))) for _, figures in runs)),
        "simulated_hours": sum(scenario.hours for scenario, _ in runs),
        "took_s": time.perf_counter() - begun,
    }


if __name__ == "__main__":
    sys.exit(main())
