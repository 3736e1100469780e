"""`shoal.map` beside the same work written by hand: a create, an exec and an end for each item, so many at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import shoal
from tests.bench.shoalpy import Shoal
from tests.bench.stats import Samples, samples
from tests.bench.subject import MEMORY_LIMIT, WORKLOAD

ITEMS = 200
CALLERS = 16
ROUNDS = 1  # of two minutes


def efficiency(subject: Shoal, quiet: Callable[[], None]) -> Samples:
    """How many times as many items a second a map completes: one sample per round, in which both take turns."""
    options = subject.wanted(MEMORY_LIMIT)
    asyncio.run(_by_hand(subject, options, 2 * CALLERS))  # the steady state: as many were there a moment ago
    ratios = []
    for _ in range(ROUNDS):
        quiet()
        by_hand = asyncio.run(_by_hand(subject, options, ITEMS))
        quiet()
        ratios.append(asyncio.run(_by_map(subject, options, ITEMS)) / by_hand)
    return samples("×", ratios)


async def _by_hand(subject: Shoal, options: dict[str, Any], items: int) -> float:
    """Items per second."""
    left = iter(range(items))

    async def caller() -> None:
        for _ in left:
            async with await shoal.Sandbox.create.aio(**options, client=subject.client) as sandbox:
                await sandbox.run.aio(WORKLOAD, check=True)

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return items / (time.perf_counter() - start)


async def _by_map(subject: Shoal, options: dict[str, Any], items: int) -> float:
    """Items per second."""
    start = time.perf_counter()
    outcomes = shoal.map.aio(_item, range(items), concurrency=CALLERS, client=subject.client, **options)
    async for outcome in outcomes:
        outcome.unwrap()
    return items / (time.perf_counter() - start)


async def _item(sandbox: shoal.Sandbox, _: int) -> None:
    await sandbox.run.aio(WORKLOAD, check=True)
