"""What became of one item of a map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T, R]):
    """The outcome of one item of `shoal.map`: a value, or the error that the last attempt ended with.

    `index` counts the items from 0. `attempts`: how many there were. `seconds`: from the begin of the first attempt to
    the end of the last, with the creates. `sandbox_id`: the last attempt's sandbox, None if none could be created.
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
