"""The JSON of rollouts in progress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import Path
from pydantic import Field

from shoal.cluster.api.schema.control import Sent, Told
from shoal.model.field_types import Name
from shoal.model.rollouts import MOST_NAME, MOST_POINTS, Rewards, RolloutReport, RolloutState

RolloutId = Annotated[
    str, Path(description="The rollout's id.", pattern="^ro-[0-9a-z]{1,32}$", examples=["ro-2fq7c3j5kx6n4a7b"])
]
_Count = Annotated[int, Field(ge=0, le=1 << 53)]
_Counts = Annotated[list[Annotated[int, Field(ge=1, le=1 << 53)]], Field(max_length=MOST_POINTS)]
_Scores = Annotated[list[float], Field(max_length=MOST_POINTS)]


class RewardsSent(Sent):
    """Rewards over items, as columns of the same length: a point stands for outcomes that followed one another."""

    items: _Counts = Field(default_factory=list)
    """How many outcomes there were by the end of each point"""
    counts: _Counts = Field(default_factory=list)
    """How many of a point's had a score"""
    mean: _Scores = Field(default_factory=list)
    least: _Scores = Field(default_factory=list)
    most: _Scores = Field(default_factory=list)


class RolloutSent(Sent):
    """What a rollout says of itself: the whole of it, each time."""

    environment: Name | None = None
    """The environment; by default the token's, or `main` for a token of all"""
    name: Annotated[str, Field(min_length=1, max_length=MOST_NAME)] | None = None
    """For people"""
    state: Literal["running", "done", "stopped", "failed"] = "running"
    total: _Count | None = None
    """How many items there are; null if nobody knows"""
    done: _Count
    """So many have an outcome"""
    failed: _Count = 0
    """So many of them are errors"""
    running: _Count = 0
    """So many are under way"""
    seconds: Annotated[float, Field(ge=0, le=1e9)]
    """Since it began"""
    rewards: RewardsSent = RewardsSent()

    def parsed(self, environment: str) -> RolloutReport:
        """The report, of this environment."""
        given = self.model_dump(exclude={"environment", "rewards", "state"})
        state, rewards = RolloutState(self.state), Rewards(**self.rewards.model_dump())
        return RolloutReport(environment=environment, state=state, rewards=rewards, **given)


class Rollout(Told):
    """A rollout. Times in unix seconds."""

    id: str
    environment: str
    name: str | None
    owner: str
    """The token that reported it first"""
    state: RolloutState
    """`lost`: it has not reported for a minute"""
    total: int | None
    done: int
    failed: int
    running: int
    mean: float | None
    """Of all scores"""
    started_at: float
    reported_at: float
    ended_at: float | None
    rewards: Rewards
    """Empty in listings"""


class Rollouts(Told):
    """Those that run and the last ones that ended, newest first."""

    rollouts: Sequence[Rollout]
