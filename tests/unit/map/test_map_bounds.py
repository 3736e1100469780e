"""`shoal.map`: how much it holds at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

import shoal
from shoal.client.cluster import Client
from shoal.model.info import SandboxInfo
from shoal.model.spec import SandboxSpec
from shoal.model.states import State
from tests.fakes.cluster import FakeTransport
from tests.unit.map.lab import Lab, others

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


class Counting(FakeTransport):
    """Sandboxes that cost nothing: they only count. `most`: how many lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.most = 0
        self.made = 0

    async def create(self, spec: SandboxSpec, *, deadline: float, wait: bool = True) -> SandboxInfo:
        self.made += 1
        self.now += 1
        self.most = max(self.most, self.now)
        return SandboxInfo(f"sb-{self.made:016d}", State.RUNNING, spec, 0.0)

    async def terminate(self, sandbox_id: str) -> SandboxInfo:
        self.now -= 1
        return None  # type: ignore[return-value]


async def double(sandbox: shoal.Sandbox, item: int) -> int:
    return 2 * item


@pytest.mark.parametrize("ordered", [True, False])
async def test_an_endless_generator_is_taken_only_so_far_ahead(ordered: bool) -> None:
    fake, pulled, ahead, most_tasks = Counting(), 0, 0, 0

    def endless() -> Iterator[int]:
        nonlocal pulled
        while True:
            pulled += 1
            yield pulled

    outcomes = shoal.map.aio(double, endless(), concurrency=8, ahead=2, buffer=5, ordered=ordered, client=Client(fake))
    taken = 0
    async with aclosing(outcomes):
        async for outcome in outcomes:
            assert outcome.value == 2 * outcome.item
            taken += 1
            if taken % 100 == 0:  # a taker that is slow at times
                await asyncio.sleep(0.01)
            ahead, most_tasks = max(ahead, pulled - taken), max(most_tasks, await others())
            if taken == 1500:
                break
    assert ahead <= 8 + 2 + 5
    assert most_tasks <= 8 + 2 + 1 + 10, "a task for each item, the one that takes items, and the sandboxes' ends"
    assert fake.most <= 8 + 2
    assert fake.now == 0
    assert await others() == 0


async def test_a_straggler_holds_up_only_as_many_as_may_wait() -> None:
    fake, begun, go_on = Counting(), 0, asyncio.Event()

    async def first_hangs(sandbox: shoal.Sandbox, item: int) -> None:
        nonlocal begun
        begun += 1
        if item == 0:
            await go_on.wait()

    options: Any = {"concurrency": 4, "ahead": 1, "buffer": 3, "ordered": True, "client": Client(fake)}
    outcomes = shoal.map.aio(first_hangs, iter(range(1000)), **options)
    async with aclosing(outcomes):
        taking = asyncio.ensure_future(anext(outcomes))
        await asyncio.sleep(0.2)
        assert begun == 4 + 1 + 3
        go_on.set()
        assert (await taking).index == 0


async def test_sandboxes_are_made_while_items_run(lab: Lab) -> None:
    lab.fake.start_s = 0.1
    waits: list[float] = []
    last = time.monotonic()

    async def work(sandbox: shoal.Sandbox, item: int) -> None:
        nonlocal last
        waits.append(time.monotonic() - last)
        await asyncio.sleep(0.15)
        last = time.monotonic()

    async for _ in shoal.map.aio(work, range(4), concurrency=1, client=lab.client):
        pass
    assert all(wait < 0.09 for wait in waits[1:]), waits


async def test_items_at_a_time_are_bounded(lab: Lab) -> None:
    now = most = 0

    async def work(sandbox: shoal.Sandbox, item: int) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1

    async for _ in shoal.map.aio(work, range(30), concurrency=3, ahead=3, client=lab.client):
        pass
    assert most == 3
