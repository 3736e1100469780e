"""What became of one item of a map."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from shoal.client.html import Listed, card, text

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T, R]):
    """The outcome of one item of `shoal.map`: a value, or the error that the last attempt ended with.

    `index` counts the items from 0. `attempts`: how many there were. `seconds`: from the begin of the first attempt to
    the end of the last, with the creates, and without what a sandbox that was made ahead waited for its turn.
    `sandbox_id`: the last attempt's sandbox, None if none could be created.
    """

    index: int
    item: T
    value: R | None
    error: BaseException | None
    attempts: int
    seconds: float
    sandbox_id: str | None

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.error is None

    def unwrap(self) -> R:
        """The value; raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return cast(R, self.value)

    @property
    def _result(self) -> object:
        """Value, score of the reward, or error: what is shown."""
        if self.error is not None:
            return f"{type(self.error).__name__}: {self.error}"
        return getattr(self.value, "score", self.value)

    def _repr_html_(self) -> str:
        heading = f"{'✓' if self.ok else '✗'} <b>{text(self._result)}</b>"
        facts = {"item": self.item, "attempts": self.attempts, "after": f"{self.seconds:.3g} s"}
        return card(heading, {**facts, "sandbox": self.sandbox_id})


class Outcomes(Listed[Outcome[T, R]]):
    """A list of outcomes that shows itself as a table in a notebook: `shoal.Outcomes(shoal.map(…))`."""

    def __init__(self, outcomes: Iterable[Outcome[T, R]]) -> None:
        super().__init__(outcomes, "index item ok _result attempts seconds")

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return type(self), (list(self),)

    @property
    def mean(self) -> float | None:
        """Of the values that are numbers or rewards; None if there is none."""
        scores = [score for outcome in self if outcome.ok and (score := score_of(outcome.value)) is not None]
        return sum(scores) / len(scores) if scores else None

    def _repr_html_(self) -> str:
        facts = {"failed": sum(not outcome.ok for outcome in self) or None, "mean": self.mean}
        return card(f"<b>{len(self):,} outcomes</b>", facts, super()._repr_html_())


def score_of(value: object) -> float | None:
    """A number, or a `Reward`'s; None for all else."""
    try:
        score = getattr(value, "score", value)
        return float(score) if isinstance(score, int | float) and not isinstance(score, bool) else None
    except Exception:  # noqa: BLE001  # a class of the user's, or a number of hundreds of digits: no error of the map
        return None
