"""Samples and what is said of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Samples:
    """Numbers measured, in `unit`: `s` for times, `/s` and `MB/s` for rates, `MB` and `count` for sizes, `×` for
    ratios.

    Never empty.
    """

    unit: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("no samples: nothing was measured")
        if not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"samples that are no numbers: {self.values}")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: `unit`, `n`, `min`, `median`, `p95`, `max`."""
        return {
            "unit": self.unit,
            "n": len(self.values),
            "min": min(self.values),
            "median": self.median,
            "p95": percentile(self.values, 95),
            "max": max(self.values),
        }


def samples(unit: str, values: Iterable[float]) -> Samples:
    return Samples(unit, tuple(values))


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least `q` per cent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)]


def times_better(ours: Samples, theirs: Samples) -> float:
    """How many times better the median of `ours` is than that of `theirs`: a lower time, a higher rate.

    Above 1 is better.
    """
    if ours.unit != theirs.unit:
        raise ValueError(f"{ours.unit} cannot be compared with {theirs.unit}")
    if ours.unit == "/s":
        return ours.median / theirs.median
    return theirs.median / ours.median
