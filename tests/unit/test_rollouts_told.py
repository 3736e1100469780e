"""Rollouts in progress: what a map reports of itself, and what the controller makes of it."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

import shoal
from shoal.actors.controller import rollouts as kept
from shoal.client.rollouts import reporter
from shoal.client.rollouts.reporter import Curve
from shoal.model import verbs
from shoal.model.access import INSIDE, Caller, Quota, Scope
from shoal.model.errors import EnvironmentNotFound, InvalidRequest, RolloutNotFound, Unavailable
from shoal.model.rollouts import LOST_S, MOST_POINTS, Rewards, RolloutReport, RolloutState
from tests.unit.controller_world import World
from tests.unit.map.lab import Lab

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

REPORT = RolloutReport("main", total=10, done=3, failed=1, running=2, seconds=5.0, name="<b>GRPO\u202e")
DEV = Caller("tk-dev", "dev", Scope.RUN)


def test_a_curve_of_any_length_has_few_points_and_loses_no_score() -> None:
    curve, scores = Curve(), [float(number % 7) for number in range(10_001)]
    for number, score in enumerate(scores, 1):
        curve.add(number, score)
    rewards = curve.columns()
    rewards.check()
    assert MOST_POINTS // 2 <= len(rewards.items) <= MOST_POINTS
    assert sum(rewards.counts) == len(scores)
    assert (rewards.items[-1], min(rewards.least), max(rewards.most)) == (10_001, 0, 6)
    assert rewards.average == pytest.approx(sum(scores) / len(scores))
    assert Curve().columns().average is None


@pytest.fixture
async def book() -> kept.Rollouts:
    parts = (await World().controller()).parts
    await parts.accounts.create_environment("dev", Quota(), INSIDE)
    parts.rollouts.clock = lambda: 1000.0
    return parts.rollouts


async def test_each_environment_sees_its_own(book: kept.Rollouts) -> None:
    book.report_rollout("ro-1", REPORT, INSIDE)
    book.report_rollout(
        "ro-2", replace(REPORT, environment="dev", rewards=Rewards((1,), (1,), (0.5,), (0,), (1,))), DEV
    )
    (seen,) = book.rollouts(None, DEV)
    assert (seen.id, seen.owner, seen.started_at, seen.mean, seen.rewards) == ("ro-2", "tk-dev", 995, 0.5, Rewards())
    assert [each.id for each in book.rollouts("main", INSIDE)] == ["ro-1"]
    assert book.rollout("ro-2", DEV).rewards.mean == (0.5,)
    for refused, error in (
        (lambda: book.rollout("ro-1", DEV), RolloutNotFound),
        (lambda: book.report_rollout("ro-1", REPORT, DEV), EnvironmentNotFound),
        (lambda: book.report_rollout("ro-1", replace(REPORT, environment="no"), INSIDE), EnvironmentNotFound),
        (lambda: book.report_rollout("RO", REPORT, INSIDE), InvalidRequest),
        (lambda: book.report_rollout("ro-1", replace(REPORT, done=-1), INSIDE), InvalidRequest),
        (lambda: book.report_rollout("ro-1", replace(REPORT, name="n" * 201), INSIDE), InvalidRequest),
        (lambda: book.report_rollout("ro-1", replace(REPORT, rewards=Rewards((1,))), INSIDE), InvalidRequest),
        (lambda: book.report_rollout("ro-1", replace(REPORT, state=RolloutState.LOST), INSIDE), InvalidRequest),
    ):
        with pytest.raises(error):
            refused()


async def test_one_that_stops_reporting_is_lost_and_what_ended_goes(book: kept.Rollouts) -> None:
    book.report_rollout("ro-1", REPORT, INSIDE)
    book.clock = lambda: 1001.0 + LOST_S
    (lost,) = book.rollouts(None, INSIDE)
    assert (lost.state, lost.running, lost.ended_at) == (RolloutState.LOST, 0, 1000)
    book.report_rollout("ro-1", REPORT, INSIDE)
    assert book.rollout("ro-1", INSIDE).state is RolloutState.RUNNING, "it was only cut off"
    book.report_rollout("ro-1", replace(REPORT, state=RolloutState.DONE), INSIDE)
    book.report_rollout("ro-1", REPORT, INSIDE)
    assert book.rollout("ro-1", INSIDE).state is RolloutState.DONE, "a late report opens it no more"
    for number in range(kept.MOST_OF_ENVIRONMENT):
        book.report_rollout(f"ro-n{number}", REPORT, INSIDE)
    assert len(book.rollouts(None, INSIDE)) == kept.MOST_OF_ENVIRONMENT
    with pytest.raises(RolloutNotFound):
        book.rollout("ro-1", INSIDE)
    book.clock = lambda: 2000.0 + kept.KEPT_S
    assert book.rollouts(None, INSIDE) == []


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "EVERY_S", 0.02)


async def rollouts(lab: Lab) -> Any:
    return await lab.client.rollouts.aio()


async def test_a_map_reports_how_far_it_is_and_how_it_ended(soon: None) -> None:
    lab, half = Lab(), asyncio.Event()

    async def score(sandbox: shoal.Sandbox, item: int) -> object:
        if item == 3:
            half.set()
            await asyncio.Event().wait()
        if item == 1:
            raise ValueError("no")
        return 10**400 if item == 2 else item / 2

    async def look() -> None:
        await half.wait()
        end = time.monotonic() + 20
        while not (found := await rollouts(lab)) or found[0].done < 3:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        (told,) = found
        assert (told.name, told.environment, told.owner, told.state.value) == ("grpo <i>", "main", "cluster", "running")
        assert (told.total, told.done, told.failed, told.running, told.mean) == (4, 3, 1, 1, 0.0)

    looking = asyncio.create_task(look())
    options: Any = {"client": lab.client, "concurrency": 1, "ahead": 0, "name": "grpo <i>"}
    async with aclosing(shoal.map.aio(score, range(4), **options)) as outcomes:
        async for outcome in outcomes:
            if outcome.index == 2:
                await looking
                break
    (ended,) = await rollouts(lab)
    assert (ended.state.value, ended.running) == ("stopped", 0)
    assert (await lab.client.rollout.aio(ended.id)).rewards.items == (1,)


async def test_a_map_needs_no_cluster_that_takes_its_reports(soon: None) -> None:
    lab = Lab()
    for _ in range(3):
        lab.fake.fail_next("report_rollout", Unavailable("the controller is away"))

    async def nap(sandbox: shoal.Sandbox, item: int) -> int:
        await asyncio.sleep(0.15)
        return item

    found = [outcome.unwrap() async for outcome in shoal.map.aio(nap, range(2), client=lab.client, concurrency=2)]
    assert sorted(found) == [0, 1]
    lab.fake.fail_next("report_rollout", InvalidRequest("of another version"))
    before = len(lab.fake.named("report_rollout"))
    async for _ in shoal.map.aio(nap, range(2), client=lab.client, concurrency=2):
        pass
    assert len(lab.fake.named("report_rollout")) == before + 1, "asked once"


async def test_a_short_map_is_never_told_of() -> None:
    lab = Lab()
    async for _ in shoal.map.aio(lambda sandbox, item: item, range(3), client=lab.client):
        pass
    assert lab.fake.named("report_rollout") == []
    assert await lab.client.transport.ask(verbs.rollouts, None) == []
