"""What sandboxes use: sampled on the node, reported once, summed by hour."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from shoal.actors.controller.nodes import Node
from shoal.actors.controller.usage_accounts import MOST_VALUES, OTHERS
from shoal.actors.engines.contract import Usage
from shoal.actors.node.usage_meter import UsageMeter
from shoal.actors.node.usage_sampler import traffic
from shoal.model.access import INSIDE, Caller, Scope
from shoal.model.errors import EnvironmentNotFound, InvalidRequest, Unavailable
from shoal.model.spec import MIB
from shoal.model.usage import POINTS, Amounts, Sample, UsageReport
from tests.unit.builders import node_info, spec
from tests.unit.controller_world import World
from tests.unit.node_world import Machine, machine


def sample(at: float, cpu: float = 0.0, memory: float = 0.0, received: float = 0.0) -> Sample:
    return Sample(at, cpu, memory * MIB, 0.0, received, 0.0)


def test_all_that_a_sandbox_used_is_reported_once() -> None:
    meter = UsageMeter(5)
    meter.note("sb-1", "c-1", 100.0, sample(110.0, 2.0, 100))
    meter.note("sb-1", "c-1", 100.0, sample(120.0, 3.0, 200, received=7))
    first = meter.report()
    meter.note("sb-1", "c-1", 100.0, sample(121.0, 4.0, 200, received=9), last=True)
    assert first.amounts["sb-1"] == Amounts(1, 20.0, 3.0, 2500.0, 0.0, 7, 0)
    assert meter.report() == first  # until it is confirmed
    meter.confirm(first.number - 1)
    assert meter.report() == first
    meter.confirm(first.number)
    second = meter.report()
    assert second.number == first.number + 1
    assert second.amounts["sb-1"] == Amounts(0, 1.0, 1.0, 200.0, 0.0, 2, 0)
    meter.confirm(second.number)
    assert meter.report().amounts == {}


def test_one_that_was_stopped_and_runs_again_is_not_charged_for_the_time_between() -> None:
    meter = UsageMeter(0)
    meter.note("sb-1", "c-1", 0.0, sample(10.0, 5.0), last=True)
    meter.note("sb-1", "c-1", 0.0, sample(10.5, 5.1))  # a look that was overtaken by its end
    meter.note("sb-1", "c-1", 1000.0, sample(1004.0, 6.0))
    assert meter.report().amounts["sb-1"] == Amounts(1, 14.0, 11.0, 0.0, 0.0, 0, 0)


def test_one_that_ran_before_the_node_actor_is_charged_from_the_first_look_on() -> None:
    meter = UsageMeter(0)
    meter.resume("sb-1", "c-1", sample(50.0, 100.0))
    meter.note("sb-1", "c-1", 0.0, sample(60.0, 101.0))
    assert meter.report().amounts["sb-1"] == Amounts(0, 10.0, 1.0, 0.0, 0.0, 0, 0)


def test_an_hour_of_samples_is_kept_of_each_and_of_the_last_that_ended() -> None:
    meter = UsageMeter(0)
    for tick in range(1, POINTS + 20):
        meter.note("sb-1", "c-1", 0.0, sample(10.0 * tick, 5.0 * tick, 64, received=10.0 * tick))
    told = meter.usage("sb-1", None)
    assert len(told.series.at) == POINTS - 1
    assert set(told.series.cpu) == {0.5}
    assert set(told.series.network_in) == {1.0}
    assert (told.memory, told.cpu_seconds) == (64.0, 5.0 * (POINTS + 19))
    [load] = meter.loads()
    assert (load.sandbox_id, load.cpu, load.memory) == ("sb-1", 0.5, 64.0)
    assert len(meter.usage("sb-1", told.series.at[-3]).series.at) == 2
    now = meter.usage("sb-1", None, sample(told.series.at[-1] + 2, 5.0 * (POINTS + 19) + 2))
    assert now.series.cpu[-1] == 1.0
    assert meter.usage("sb-2", None).at is None
    for number in range(400):
        meter.note(f"sb-e{number}", f"c-{number}", 0.0, sample(5000.0), last=True)
    meter.end_all_but(["sb-1"], 5000.0)
    assert not meter.knows("sb-e0")
    assert meter.knows("sb-e399")
    meter.end_all_but([], 9999.0)
    assert not meter.knows("sb-1")


def test_what_the_node_sends_the_sandbox_receives() -> None:
    text = (
        "Inter-|   Receive                            |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n"
        "shabc: 100 1 0 0 0 0 0 0 900 9 0 0 0 0 0 0\n    lo:5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0\n"
    )
    assert traffic(text) == {"shabc": (900, 100), "lo": (6, 5)}


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    async with machine(monkeypatch) as made:
        yield made


@pytest.mark.anyio
async def test_a_node_samples_its_sandboxes_and_goes_on_after_a_restart(place: Machine) -> None:
    parts = await place.parts()
    started = await place.node.start_container("sb-1", spec())
    place.engine.containers[started.key].usage = Usage(2.0, 64 * MIB, 1)
    await parts.usage.turn()
    assert (await place.node.sandbox_usage("sb-1", None)).memory == 64.0
    report = await place.node.usage_report()
    assert (report.amounts["sb-1"].sandboxes, report.amounts["sb-1"].cpu_seconds) == (1, 2.0)
    await place.restart()
    await (await place.parts()).usage.turn()
    again = await place.node.usage_report()
    assert again.number > report.number
    # The first look after a restart only remembers.
    assert all((each.sandboxes, each.cpu_seconds) == (0, 0.0) for each in again.amounts.values())
    assert (await place.node.sandbox_usage("sb-2", None)).at is None


class Told:
    """A node that reports; `confirmed`: the numbers that it was told."""

    def __init__(self) -> None:
        self.report = UsageReport(1, {})
        self.confirmed: list[int] = []
        self.fails = False

    async def call(self, handle: Any, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        if self.fails:
            raise Unavailable("away")
        if method == "confirm_usage":
            self.confirmed += args
            return None
        return self.report


@pytest.mark.anyio
async def test_use_is_summed_by_environment_and_tag_and_counted_once() -> None:
    world = World()
    parts = (await world.controller()).parts
    accounts, node = parts.usage_accounts, Told()
    parts.nodes._nodes["n1"] = Node("n1", None, {}, {}, "h", info=node_info("n1"))  # type: ignore[arg-type]
    accounts.call = node.call
    now = 36_000_000.0
    accounts.clock = lambda: now
    info, _ = await parts.sandboxes.create(spec(tags={"job": "a", "item": "1"}), 60, True, INSIDE)
    node.report = UsageReport(11, {info.id: Amounts(1, 10.0, 2.0), "sb-unknown": Amounts(1, 99.0)})
    await accounts.turn()
    await accounts.turn()  # the confirmation was lost: the node tells the same again
    assert {11} <= set(node.confirmed) <= {1, 11}
    node.report = UsageReport(12, {info.id: Amounts(0, 5.0, 1.0)})
    await accounts.turn()
    [row] = await accounts.sums("environment", None, None, None, INSIDE)
    assert (row.key, row.sandboxes, row.seconds, row.cpu_seconds) == ("main", 1, 15.0, 3.0)
    assert [row.key for row in await accounts.sums("tag:job", None, None, None, INSIDE)] == ["a"]
    assert await accounts.sums("day", now + 3600, None, None, INSIDE) == []
    node.fails = True
    await accounts.turn()
    for by in ("week", "tag:", ""):
        with pytest.raises(InvalidRequest):
            await accounts.sums(by, None, None, None, INSIDE)
    other = Caller("tk-1", "main", Scope.READ)
    with pytest.raises(EnvironmentNotFound):
        await accounts.sums("day", None, None, "dev", other)
    assert len(await accounts.sums("day", None, None, None, other)) == 1

    again = (await world.controller()).parts.usage_accounts  # it goes on with the sums of this hour
    again.clock = lambda: now
    await again.restore()
    record = parts.registry.get(info.id)
    assert record is not None
    again._count(record, Amounts(0, 1.0))
    await again._write()
    assert (await again.sums("environment", None, None, None, INSIDE))[0].seconds == 16.0


@pytest.mark.anyio
async def test_a_tag_of_many_values_does_not_fill_the_accounts() -> None:
    parts = (await World().controller()).parts
    info, _ = await parts.sandboxes.create(spec(), 60, True, INSIDE)
    record = parts.registry.get(info.id)
    assert record is not None
    for number in range(MOST_VALUES + 5):
        parts.usage_accounts._count(replace(record, tags={"item": str(number), "job": "a"}), Amounts(1, 1.0))
    await parts.usage_accounts._write()
    rows = await parts.usage_accounts.sums("tag:item", None, None, None, INSIDE)
    assert len(rows) == MOST_VALUES + 1
    assert (rows[0].key, rows[0].sandboxes) == (OTHERS, 5)
    [job] = await parts.usage_accounts.sums("tag:job", None, None, None, INSIDE)
    assert job.sandboxes == MOST_VALUES + 5
