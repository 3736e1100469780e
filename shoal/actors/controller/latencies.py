"""Durations counted in a few dozen bins, so that quantiles of many cost little memory. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from shoal.model.overview import Latency

_STEP = math.log(1.08)
"""Each bin is 8 % wide, so a quantile is off by 4 % at most."""

_LEAST_S = 1e-4
_MOST_S = 1e5


class Latencies:
    """How long things took."""

    __slots__ = ("_bins",)

    def __init__(self) -> None:
        self._bins: Counter[int] = Counter()

    def add(self, seconds: float, count: int = 1) -> None:
        """Notes that `count` took so long."""
        bounded = min(max(seconds, _LEAST_S), _MOST_S)
        self._bins[round(math.log(bounded) / _STEP)] += count

    def __bool__(self) -> bool:
        return bool(self._bins)


def merged(all_of: Iterable[Latencies]) -> Latency:
    """The quantiles of several together."""
    bins: Counter[int] = Counter()
    for each in all_of:
        bins.update(each._bins)
    count = bins.total()
    if not count:
        return Latency()
    ordered = sorted(bins.items())
    return Latency(count, _quantile(ordered, count, 0.5), _quantile(ordered, count, 0.95))


def _quantile(ordered: list[tuple[int, int]], count: int, part: float) -> float:
    wanted, seen = math.ceil(part * count), 0
    for index, within in ordered:
        seen += within
        if seen >= wanted:
            return float(f"{math.exp(index * _STEP):.3g}")
    raise AssertionError("the parts are less than the whole")
