"""Decides who is next for room when there is not enough: the environment that uses least, and within it who has waited
longest. Pure.

What an environment uses is its dominant share: the largest part that its sandboxes hold of any of the cluster's
resources (dominant resource fairness; Ghodsi et al., 2011).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from shoal.actors.controller.ledger import dominant_share
from shoal.actors.controller.room import Amount


class InLine(Protocol):
    """Who waits. `since`: by any clock that all share."""

    @property
    def environment(self) -> str: ...

    @property
    def since(self) -> float: ...


W = TypeVar("W", bound=InLine)


def fairest(waiting: Iterable[W], used: Mapping[str, Amount], total: Amount) -> W | None:
    """Who is next. `used`: what the sandboxes of each environment hold; `total`: what the cluster has."""

    def place(waiter: W) -> tuple[float, float]:
        amount = used.get(waiter.environment)
        return (0.0 if amount is None else dominant_share(amount, total)), waiter.since

    return min(waiting, key=place, default=None)
