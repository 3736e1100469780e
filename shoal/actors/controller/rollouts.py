"""Rollouts in progress, as maps report them. In memory only: after a restart those that run report themselves again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from shoal.actors.controller.accounts import Accounts
from shoal.model.access import Caller
from shoal.model.errors import RolloutNotFound
from shoal.model.rollouts import LOST_S, Rewards, RolloutInfo, RolloutReport, RolloutState, check_rollout_id
from shoal.model.visibility import check_sees_environment, sees

KEPT_S = 24 * 3600.0
"""Ended ones are told of for so long."""

MOST_OF_ENVIRONMENT = 100
MOST = 500
"""No more are kept, of one environment and of all: those that ended first go first. Each has a few KB, 40 at most."""

_RUNNING = RolloutState.RUNNING


@dataclass(slots=True)
class Rollouts:
    """`clock`: unix seconds."""

    accounts: Accounts
    clock: Callable[[], float] = time.time
    _known: dict[tuple[str, str], RolloutInfo] = field(default_factory=dict)  # by environment and id; oldest first

    def report_rollout(self, rollout_id: str, report: RolloutReport, caller: Caller) -> None:
        """Keeps what it says in place of what was known."""
        check_sees_environment(caller, report.environment)
        self.accounts.quota(report.environment)  # or there is no such environment
        check_rollout_id(rollout_id)
        report.check()
        now = self.clock()
        key = report.environment, rollout_id
        known = self._known.get(key)
        if known is not None and known.ended_at is not None and report.state is _RUNNING:
            return  # it was under way while the last one overtook it
        self._known[key] = RolloutInfo(
            id=rollout_id,
            environment=report.environment,
            name=report.name,
            owner=caller.token if known is None else known.owner,
            state=report.state,
            total=report.total,
            done=report.done,
            failed=report.failed,
            running=report.running,
            mean=report.rewards.average,
            started_at=now - report.seconds if known is None else known.started_at,
            reported_at=now,
            ended_at=None if report.state is _RUNNING else now,
            rewards=report.rewards,
        )
        if known is None:
            self._trim(now)

    def rollouts(self, environment: str | None, caller: Caller) -> list[RolloutInfo]:
        """Those that the caller may see, newest first."""
        if environment is not None:
            self.accounts.environment(environment, caller)
        now = self.clock()
        self._trim(now)
        found = [
            replace(_as_of(each, now), rewards=Rewards())
            for each in self._known.values()
            if sees(caller, each.environment) and environment in (None, each.environment)
        ]
        return sorted(found, key=lambda each: each.started_at, reverse=True)

    def rollout(self, rollout_id: str, caller: Caller) -> RolloutInfo:
        """One, with its rewards."""
        for (environment, known_id), info in self._known.items():
            if known_id == rollout_id and sees(caller, environment):
                return _as_of(info, self.clock())
        raise RolloutNotFound(
            f"there is no rollout {rollout_id!r:.80}; `shoal rollout ls` lists those that run or ended lately"
        )

    def _trim(self, now: float) -> None:
        """Forgets what ended long ago, and what is too much."""
        by_end = sorted(self._known, key=lambda key: _order(_as_of(self._known[key], now)))
        counts = Counter(environment for environment, _ in by_end)
        for key in by_end:
            ended_at = _as_of(self._known[key], now).ended_at
            old = ended_at is not None and now - ended_at > KEPT_S
            if old or counts[key[0]] > MOST_OF_ENVIRONMENT or len(self._known) > MOST:
                del self._known[key]
                counts[key[0]] -= 1


def _as_of(info: RolloutInfo, now: float) -> RolloutInfo:
    """Lost, if it has not reported for too long."""
    if info.ended_at is not None or now - info.reported_at <= LOST_S:
        return info
    return replace(info, state=RolloutState.LOST, running=0, ended_at=info.reported_at)


def _order(info: RolloutInfo) -> tuple[bool, float]:
    """Those that ended first are let go first; of those that run, the ones that reported first."""
    return info.ended_at is None, info.reported_at if info.ended_at is None else info.ended_at
