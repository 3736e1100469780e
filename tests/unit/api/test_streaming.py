"""Clients that do not read, and work that is done together."""

from __future__ import annotations

import asyncio

import pytest

from shoal.cluster.api.files.ranges import http_date, part_of
from shoal.cluster.api.request.streaming import SlowClientGuard, all_to_end, first_to_end
from shoal.model.errors import QuotaExceeded, Unavailable
from tests.unit.controller_world import steps

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]  # a machine may stand still for seconds


async def test_of_too_many_clients_that_do_not_read_the_oldest_is_cut_off() -> None:
    guard = SlowClientGuard(limit=2, patience_s=0.0)
    outcomes: dict[int, str] = {}

    async def send(number: int) -> None:
        try:
            with guard.waiting():
                await asyncio.Event().wait()
        except QuotaExceeded:
            outcomes[number] = "cut off"

    tasks = [asyncio.ensure_future(send(number)) for number in range(4)]
    await steps(20)
    assert outcomes == {0: "cut off", 1: "cut off"}
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [False, False, True, True]
    with guard.waiting():  # nobody is left in the way
        pass


async def test_a_burst_cuts_nobody_off() -> None:
    guard = SlowClientGuard(limit=1, patience_s=60)

    async def send() -> None:
        with guard.waiting():
            await asyncio.sleep(0.01)

    await asyncio.gather(*(send() for _ in range(100)))


async def test_who_holds_much_counts_for_much() -> None:
    guard = SlowClientGuard(limit=96, patience_s=0.0)
    cut: list[int] = []

    async def send(number: int, windows: int) -> None:
        try:
            with guard.waiting(windows << 20):
                await asyncio.Event().wait()
        except QuotaExceeded:
            cut.append(number)

    waiting = [asyncio.ensure_future(send(number, 32)) for number in range(4)]
    waiting += [asyncio.ensure_future(send(number, 1)) for number in range(4, 36)]
    await steps(20)
    assert cut == [0, 1]
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)


async def test_together() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("forever")

    async def breaks() -> None:
        raise Unavailable("away")

    async def quick() -> None:
        ended.append("quick")

    with pytest.raises(Unavailable):
        await first_to_end(forever(), breaks())
    with pytest.raises(Unavailable):
        await all_to_end(quick(), forever(), breaks())
    await first_to_end(forever(), quick())
    await all_to_end(quick(), quick())
    assert sorted(ended) == ["forever"] * 3 + ["quick"] * 4


def test_times_that_no_calendar_has() -> None:
    for mtime_ns in (-(1 << 63), 0, (1 << 63) - 1):
        date = http_date(mtime_ns)
        assert date.endswith("GMT")
        assert part_of({"range": "bytes=0-0", "if-range": date}, 5, 'W/"x"', mtime_ns).end in (1, 5)
    assert part_of({"range": "bytes=0-0", "if-range": "Fri, 99 Nov 9999999 00:00:00 GMT"}, 5, 'W/"x"', 0).whole
