"""Two hundred sandboxes at once on this machine: does each of them answer, and how soon?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import shoal
from tests.bench.shoalpy import Shoal
from tests.bench.stats import Samples, percentile, samples
from tests.bench.subject import CPU_LIMIT, MEMORY_LIMIT, WORKLOAD

LIVE = 200
ROUNDS = 3
_PAUSE_S = 0.02  # between execs: fifty a second, as from programs that think between two
_AT_ONCE = 8  # two cores start no more than a few Ray workers a second
_DEADLINE_S = 300.0


def answers(subject: Shoal, quiet: Callable[[], None]) -> Samples:
    """The 95th percentile of an exec's milliseconds over all sandboxes, one sample per round."""
    options = {**subject.wanted(MEMORY_LIMIT), "cpu": (0.01, CPU_LIMIT), "memory": (16, MEMORY_LIMIT)}
    sandboxes: list[shoal.Sandbox] = []
    try:
        while len(sandboxes) < LIVE:
            count = min(_AT_ONCE, LIVE - len(sandboxes))
            sandboxes += shoal.Sandbox.create_many(count, deadline=_DEADLINE_S, client=subject.client, **options)
        quiet()
        return samples("ms", [asyncio.run(_round(sandboxes)) for _ in range(ROUNDS)])
    finally:
        for sandbox in sandboxes:
            sandbox.terminate()


async def _round(sandboxes: Sequence[shoal.Sandbox]) -> float:
    taken: list[float] = []

    async def one(sandbox: shoal.Sandbox) -> None:
        start = time.perf_counter()
        await sandbox.run.aio(WORKLOAD, check=True)
        taken.append(1000 * (time.perf_counter() - start))

    execs: list[Any] = []
    for sandbox in sandboxes:
        execs.append(asyncio.ensure_future(one(sandbox)))
        await asyncio.sleep(_PAUSE_S)
    await asyncio.gather(*execs)
    return percentile(taken, 95)
