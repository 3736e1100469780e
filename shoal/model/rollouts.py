"""Rollouts in progress: what a `shoal.map` tells the cluster of itself, and what the cluster tells of it.

A map runs in its caller's process. It reports the whole of what it knows, each time: so a report that is lost, or a
controller that is started anew, costs nothing but a moment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from shoal.model.errors import InvalidRequest
from shoal.model.ids import ROLLOUT
from shoal.model.validate import check_name, check_number, check_text

EVERY_S = 1.0
"""A map reports at most this often, and not before it has run so long: short ones are never told of."""

IDLE_S = 15.0
"""A map in which nothing happens reports this often, as a sign of life."""

LOST_S = 60.0
"""A map that has not reported for so long is lost: its program was killed, or cannot reach the cluster."""

MOST_POINTS = 200
MOST_NAME = 200
_MOST = 1 << 53


class RolloutState(StrEnum):
    RUNNING = "running"
    DONE = "done"  # all items have an outcome
    STOPPED = "stopped"  # its loop was left before that
    FAILED = "failed"  # it raised an error: a wrong spec, or the iterable's own
    LOST = "lost"  # no report for a minute


@dataclass(frozen=True, slots=True)
class Rewards:
    """Rewards over items, as columns of the same length. A point stands for some outcomes that followed one another:
    there were `items` outcomes by its end, `counts` of its own had a score, and `mean`, `least` and `most` are of
    these."""

    items: Sequence[int] = ()
    counts: Sequence[int] = ()
    mean: Sequence[float] = ()
    least: Sequence[float] = ()
    most: Sequence[float] = ()

    @property
    def average(self) -> float | None:
        """Of all scores; None where there are none."""
        scores = sum(self.counts)
        return (
            sum(mean * count for mean, count in zip(self.mean, self.counts, strict=True)) / scores if scores else None
        )

    def check(self) -> None:
        """Raises `InvalidRequest` for what cannot be."""
        length = len(self.items)
        if length > MOST_POINTS:
            raise InvalidRequest(f"rewards: {length} points are too many; send at most {MOST_POINTS}", field="rewards")
        for column in fields(self):
            values, name = getattr(self, column.name), f"rewards.{column.name}"
            if len(values) != length:
                raise InvalidRequest(f"{name}: it has {len(values)} values, `items` has {length}", field=name)
            for value in values:
                if column.name in ("items", "counts"):
                    check_number(name, value, 0, _MOST, "items", whole=True)
                elif not isinstance(value, int | float) or not math.isfinite(value):
                    raise InvalidRequest(f"{name}: {value!r:.80} is not a finite number", field=name)


@dataclass(frozen=True, slots=True)
class RolloutReport:
    """What a map says of itself. `total`: how many items there are, None if nobody knows; `done` have an outcome, of
    which `failed` is an error; `running` are under way. `seconds`: since it began. `state`: `running`, or how it ended.
    """

    environment: str
    total: int | None
    done: int
    failed: int
    running: int
    seconds: float
    name: str | None = None
    state: RolloutState = RolloutState.RUNNING
    rewards: Rewards = field(default_factory=Rewards)

    def check(self) -> None:
        """Raises `InvalidRequest` for what cannot be."""
        check_name("environment", self.environment)
        check_rollout_name(self.name)
        for what in ("total", "done", "failed", "running"):
            if (count := getattr(self, what)) is not None:
                check_number(what, count, -1, _MOST, "items", whole=True)
        check_number("seconds", self.seconds, -1, 1e9, "seconds")
        if self.state not in list(RolloutState) or self.state == RolloutState.LOST:
            told = ", ".join(state for state in RolloutState if state is not RolloutState.LOST)
            raise InvalidRequest(f"state: {self.state!r:.80} is none that a map has; there are {told}", field="state")
        self.rewards.check()


@dataclass(frozen=True, slots=True)
class RolloutInfo:
    """A rollout as the cluster knows it. Times in unix seconds, by the controller's clock. `owner`: the id of the token
    that reported it first, `cluster` for a program inside the cluster; `mean`: of all scores; `reported_at`: the last
    report; `rewards`: empty in listings."""

    id: str
    environment: str
    name: str | None
    owner: str
    state: RolloutState
    total: int | None
    done: int
    failed: int
    running: int
    mean: float | None
    started_at: float
    reported_at: float
    ended_at: float | None
    rewards: Rewards = field(default_factory=Rewards)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "state": self.state.value}


def check_rollout_name(name: Any) -> None:
    """`name` is None, or text that people read."""
    if name is None:
        return
    check_text("name", name, "a text that says what is rolled out")
    if len(name) > MOST_NAME:
        raise InvalidRequest(f"name: it has {len(name)} characters; use at most {MOST_NAME}", field="name")


def check_rollout_id(rollout_id: Any) -> None:
    if not isinstance(rollout_id, str) or not ROLLOUT.fullmatch(rollout_id):
        raise InvalidRequest(
            f"rollout_id: {rollout_id!r:.80} is no id; use `ro-` and up to 32 digits and lower-case letters",
            field="rollout_id",
        )
