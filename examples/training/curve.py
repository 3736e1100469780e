"""The learning curve, as text and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH = 40


@dataclass(frozen=True, slots=True)
class Step:
    """The scores of one step, and how long its rollouts took, in seconds."""

    scores: tuple[float, ...]
    seconds: float

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def best(self) -> float:
        return max(self.scores)


def line_of(number: int, step: Step) -> str:
    """One step as a line of text, with a bar for its mean score."""
    bar = "█" * round(WIDTH * step.mean)
    return f"step {number:3}  mean {step.mean:.2f}  best {step.best:.2f}  {bar:{WIDTH}}  {step.seconds:.1f} s"


def draw(steps: Sequence[Step], path: Path) -> None:
    """Draws the curve as a PNG. Needs matplotlib (the extra `examples`); `ImportError` without it."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(
        xlabel="step", ylabel="score", ylim=(0, 1.05), title="A policy learns to sort four numbers"
    )
    numbers = range(1, len(steps) + 1)
    for number, step in zip(numbers, steps, strict=True):
        axes.plot([number] * len(step.scores), step.scores, ".", color="silver", zorder=1)
    axes.plot(numbers, [step.mean for step in steps], label="mean")
    axes.plot(numbers, [step.best for step in steps], "--", label="best")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
