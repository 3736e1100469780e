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

_CLEARLY = 0.02
_MUCH_LONGER_S = 5.0
"""Ten times what the start of another slot takes."""


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
        return _share(waiter, used, total), waiter.since

    return min(waiting, key=place, default=None)


def outranks(one: InLine, other: InLine, used: Mapping[str, Amount], total: Amount) -> bool:
    """Whether `one` is so much more entitled to room that a running slot, which would serve the other at once, ends for
    it: its environment uses clearly less, or it has waited much longer."""
    lead = _share(other, used, total) - _share(one, used, total)
    return lead > _CLEARLY or (lead >= 0 and other.since - one.since > _MUCH_LONGER_S)


def _share(waiter: InLine, used: Mapping[str, Amount], total: Amount) -> float:
    amount = used.get(waiter.environment)
    return 0.0 if amount is None else dominant_share(amount, total)
