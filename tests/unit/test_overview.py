"""The last hour of a cluster: counted by environment, in bounded memory."""

from __future__ import annotations

import math
import time

import pytest
from prometheus_client import CollectorRegistry, Histogram

from shoal.actors.controller.activity import MOST_ENVIRONMENTS, Activity
from shoal.actors.controller.latencies import Latencies, merged
from shoal.actors.node.machine_usage import MachineMeter
from shoal.cluster.api.access.usage_reporter import EXEC_BUCKETS_S
from shoal.model.access import INSIDE, Caller, Scope
from shoal.model.errors import EnvironmentNotFound
from shoal.model.metrics import EXEC_SECONDS, flatten
from shoal.model.overview import POINT_S, POINTS
from tests.unit.builders import spec
from tests.unit.controller_world import World


def test_quantiles_of_many_durations_are_near() -> None:
    bins = Latencies()
    for ms in range(1, 1001):
        bins.add(ms / 1000)
    told = merged([bins, Latencies()])
    assert told.count == 1000
    assert told.p50 == pytest.approx(0.5, rel=0.05)
    assert told.p95 == pytest.approx(0.95, rel=0.05)
    assert merged([]).p50 is None


def test_an_hour_is_kept_of_what_happened() -> None:
    activity = Activity(0.0)
    for tick in range(1, POINTS + 11):
        activity.accepted("dev")
        activity.started("dev", 0.1)
        activity.ended("dev", "timeout")
        activity.close_interval(tick * POINT_S + 0.1, {"dev": {"running": tick}})
        activity.close_interval(tick * POINT_S + 0.2, {})  # a clock that was set back makes no second point
    now = (POINTS + 10) * POINT_S + 0.3
    assert len(activity.closed) == len(activity.intervals("dev")) == POINTS
    assert activity.ends("dev") == {"timeout": POINTS}
    creates, ends, latency = activity.lately("dev", now)
    assert (creates, ends, latency.count) == (5, 5, 30)
    assert activity.lately(None, now) == activity.lately("dev", now)
    assert activity.lately("prod", now)[0] == 0
    for tick in range(POINTS + 11, 2 * POINTS + 12):
        activity.close_interval(tick * POINT_S, {})
    assert activity.intervals("dev") == {}
    assert activity.ends(None) == {}


def test_environments_cannot_fill_memory() -> None:
    activity = Activity(0.0)
    for number in range(MOST_ENVIRONMENTS + 50):
        activity.accepted(f"e{number}")
        activity.close_interval((number + 1) * POINT_S, {})
    assert len(activity._kept) == MOST_ENVIRONMENTS + 1
    assert activity.lately(f"e{MOST_ENVIRONMENTS + 49}", (MOST_ENVIRONMENTS + 50) * POINT_S)[0] == 1


def test_execs_of_replicas_are_taken_out_of_what_they_count() -> None:
    registry = CollectorRegistry()
    seconds = Histogram(EXEC_SECONDS, "x", buckets=EXEC_BUCKETS_S, registry=registry)
    activity = Activity(0.0)
    for value in (0.0005, 0.0035, 0.0035, 20.0):
        seconds.observe(value)
    activity.reported(flatten(registry))
    activity.close_interval(10.0, {})
    by_interval, lately = activity.execs(11.0)
    assert lately.count == by_interval[1].count == 4
    assert lately.p50 == pytest.approx(math.sqrt(0.003 * 0.004), rel=0.05)
    assert lately.p95 == pytest.approx(5.0, rel=0.05)
    assert activity.execs(11.0 + 400)[1].count == 0


@pytest.mark.anyio
async def test_each_sees_what_its_token_allows() -> None:
    controller = await World().controller()
    book = controller.parts.overview_book
    start = time.time() // POINT_S * POINT_S
    book.clock = lambda: start
    await controller.begin(controller.parts.sandboxes.create(spec(), 60, True, INSIDE))
    all_of_it, one = Caller("tk-1", "*", Scope.READ), Caller("tk-2", "main", Scope.READ)
    assert book.overview(None, None, all_of_it).states["running"] == 1
    await controller.begin(controller.parts.sandboxes.create(spec(), 60, True, INSIDE))
    assert book.overview(None, None, all_of_it).states["running"] == 1  # kept for a second
    for tick in (1, 2, 3):
        book.clock = lambda tick=tick: start + tick * POINT_S
        await book.turn()
    whole = book.overview(None, None, all_of_it)
    assert whole.states["running"] == 2
    assert whole.create.count == 2
    assert whole.nodes is not None
    assert whole.exec is not None
    assert list(whole.series.at)[-3:] == [start + tick * POINT_S for tick in (1, 2, 3)]
    assert list(whole.series.states["running"])[-3:] == [2, 2, 2]
    assert list(whole.series.creates_per_minute)[-3:] == [12, 0, 0]
    later = book.overview(None, start + POINT_S, all_of_it)
    assert list(later.series.at) == [start + 2 * POINT_S, start + 3 * POINT_S]
    assert later.series.nodes is not None
    assert all(len(values) == 2 for values in later.series.nodes.values())
    mine = book.overview(None, None, one)
    assert (mine.environment, mine.states["running"]) == ("main", 2)
    assert mine.nodes is mine.regions is mine.exec is mine.series.cpu_used is None
    with pytest.raises(EnvironmentNotFound):
        book.overview("dev", None, one)
    with pytest.raises(EnvironmentNotFound):
        book.overview("dev", None, all_of_it)


def test_a_machine_tells_what_it_uses(tmp_path: object) -> None:
    files = {
        "stat": "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1\n",
        "uptime": "100.0 1.0\n",
        "meminfo": "MemTotal:  4096000 kB\nMemFree: 1 kB\nMemAvailable: 2048000 kB\n",
    }
    meter = MachineMeter(tmp_path, files.__getitem__)  # type: ignore[arg-type]
    assert meter.look().cpu == 0.0
    files["stat"], files["uptime"] = "cpu  500 0 100 800 0 0 0 0 0 0\n", "102.0 1.0\n"
    used = meter.look()
    assert (used.cpu, used.memory) == (2.0, 2000)
    assert used.disk > 0
    assert meter.look().cpu == 2.0  # asked again at once
