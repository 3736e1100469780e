"""Rollouts in progress: what maps report of themselves."""
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from shoal.model.access import Scope
from shoal.model.rollouts import RolloutInfo, RolloutReport
from shoal.model.verbs.verb import verb


@verb(Scope.RUN, "PUT /v1/rollouts/{rollout_id}")
def report_rollout(rollout_id: str, report: RolloutReport) -> None:
    """Takes in what a map says of itself; the first report makes the rollout known. One that has ended stays ended.

    Raises `InvalidRequest`, `EnvironmentNotFound`.
    """


@verb(Scope.READ, "GET /v1/rollouts", many="rollouts")
def rollouts(environment: str | None) -> list[RolloutInfo]:
    """Those that run and the last ones that ended, newest first and without their rewards: of an environment, or (None)
    all that the caller may see. The controller keeps them in memory: after its restart, those that run report
    themselves again."""


@verb(Scope.READ, "GET /v1/rollouts/{rollout_id}")
def rollout(rollout_id: str) -> RolloutInfo:
    """One, with its rewards over items; `RolloutNotFound`, also for one that ended long ago."""
