"""Progress while it runs; table and rates at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.rollouts.evaluate import Outcome


class Live:
    """A progress bar on a terminal; elsewhere one line per outcome, for logs."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._done = 0
        self._passed = 0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("Rolling out", total=total)

    @contextmanager
    def running(self) -> Iterator[None]:
        if not self._console.is_terminal:
            yield
            return
        with self._bar:
            yield

    def show(self, outcome: Outcome) -> None:
        self._done += 1
        trial = outcome.unwrap()
        self._passed += trial.reward
        if self._console.is_terminal:
            description = f"Rolling out, {self._passed} of {self._done} passed"
            self._bar.update(self._task, advance=1, description=description)
        else:
            line = f"[{self._done}/{self._total}] candidate {outcome.index}: reward {trial.reward} ({trial.verdict})"
            self._console.print(line, highlight=False, markup=False)


def print_report(console: Console, outcomes: Sequence[Outcome], wall: float) -> None:
    """The table of candidates, and below it the speed.

    `wall` is the time of all rollouts together, in seconds.
    """
    console.print(candidates_table(outcomes))
    console.print(figures_table(outcomes, wall))
    earned = sum(outcome.unwrap().reward for outcome in outcomes)
    console.print(f"{len(outcomes)} rollouts in {wall:.1f} s; {earned} earned reward 1.", highlight=False)


def candidates_table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="Rollouts", title_justify="left")
    table.add_column("candidate", justify="right", no_wrap=True)
    table.add_column("patch")  # shrinks on a narrow terminal
    table.add_column("reward", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for outcome in sorted(outcomes, key=lambda outcome: outcome.index):
        patch, trial = outcome.item.patch, outcome.unwrap()
        table.add_row(
            str(outcome.index),
            "(none: as published)" if patch is None else escape(str(patch)),
            f"[green]{trial.reward}[/]" if trial.reward else f"[red]{trial.reward}[/]",
            trial.verdict,
            f"{outcome.seconds:.2f} s",
        )
    return table


def figures_table(outcomes: Sequence[Outcome], wall: float) -> Table:
    """Rates over the whole run, most of which is the tests' own time. `exec` is one run of the suite."""
    table = Table()
    for name in ("", "number", "per second", "p50", "p95"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    trials = [outcome.unwrap() for outcome in outcomes]
    for name, samples in (
        ("rollout", [outcome.seconds for outcome in outcomes]),
        ("exec", [trial.exec for trial in trials]),
        ("exec less the tests", [trial.exec - trial.inside for trial in trials if trial.inside is not None]),
    ):
        figures = (f"{percentile(samples, q) * 1000:.1f} ms" for q in (50, 95))
        table.add_row(name, str(len(samples)), f"{len(samples) / wall:.1f}", *figures)
    return table


def percentile(samples: Sequence[float], q: float) -> float:
    """The `q`-th percentile: the smallest sample that `q` per cent do not exceed; 0 without samples."""
    if not samples:
        return 0.0
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)]
