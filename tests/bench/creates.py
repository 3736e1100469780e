"""From the call that creates a sandbox to the end of its first exec; and how many of these go through in a second."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from shoal import Pool
from tests.bench.shoalpy import Shoal
from tests.bench.stats import Samples, samples
from tests.bench.subject import CPU_LIMIT, MEMORY_LIMIT, WORKLOAD, Box, Subject

COLD = 8  # creates
WARM = 12
POOL = 3  # ready for takes one after the other
BURST = 100
RATE_CREATES = 24
RATE_CALLERS = 8
RATE_ROUNDS = 2

_unlike = itertools.count(MEMORY_LIMIT + 1)


def cold(subjects: Sequence[Subject], quiet: Callable[[], None]) -> dict[str, Samples]:
    """Only the image is there: every create asks for another memory limit, so no warm container fits."""
    times: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for turn in range(COLD + 1):
        memory = next(_unlike)
        for subject in subjects:
            quiet()
            seconds, box = to_first_exec(subject, memory)
            box.close()
            if turn > 0:  # the first is the warm-up
                times[subject.name].append(seconds)
    return {name: samples("s", values) for name, values in times.items()}


def warm(subject: Subject, ready: Callable[[], None]) -> Samples:
    """The same shape again and again. `ready` returns once an idle slot and a warm container are there."""
    for _ in range(3):  # makes the shape known as one that is in use
        to_first_exec(subject, MEMORY_LIMIT)[1].close()
    times = []
    for _ in range(WARM):
        ready()
        seconds, box = to_first_exec(subject, MEMORY_LIMIT)
        box.close()
        times.append(seconds)
    return samples("s", times)


def from_pool(subject: Shoal, quiet: Callable[[], None]) -> Samples:
    """As `warm`, from a declared pool."""
    times = []
    with subject.pool(POOL) as pool:
        for _ in range(WARM):
            pool.wait_ready(POOL)
            quiet()
            start = time.perf_counter()
            sandbox = pool.take()
            sandbox.run(WORKLOAD, check=True)
            times.append(time.perf_counter() - start)
            sandbox.terminate()
    return samples("s", times)


def burst(subject: Shoal, quiet: Callable[[], None], size: int = BURST) -> Samples:
    """Seconds until as many takes as a pool has ready, all at once, have each been answered."""

    async def takes(pool: Pool) -> float:
        start = time.perf_counter()
        sandboxes = await asyncio.gather(*(pool.take.aio() for _ in range(size)))
        seconds = time.perf_counter() - start
        await asyncio.gather(*(sandbox.terminate.aio() for sandbox in sandboxes))
        return seconds

    with subject.pool(size, cpu=(0.01, CPU_LIMIT), memory=(16, MEMORY_LIMIT)) as pool:
        pool.wait_ready(size, timeout=600)
        quiet()
        return samples("s", [asyncio.run(takes(pool))])


def rate(subjects: Sequence[Subject], quiet: Callable[[], None]) -> dict[str, Samples]:
    """`RATE_CREATES` sandboxes by `RATE_CALLERS` threads, each created, used once and taken away: per second, one
    sample per round.
    """
    rates: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for subject in subjects:  # the steady state: as many were there a moment ago
        one_round(subject, RATE_CALLERS * 2)
    for _ in range(RATE_ROUNDS):
        for subject in subjects:
            quiet()
            rates[subject.name].append(one_round(subject, RATE_CREATES))
    return {name: samples("/s", values) for name, values in rates.items()}


def one_round(subject: Subject, creates: int) -> float:
    def life(_: int) -> None:
        to_first_exec(subject, MEMORY_LIMIT)[1].close()

    start = time.perf_counter()
    with ThreadPoolExecutor(RATE_CALLERS) as pool:
        for _ in pool.map(life, range(creates)):
            pass
    return creates / (time.perf_counter() - start)


def to_first_exec(subject: Subject, memory: int) -> tuple[float, Box]:
    """Seconds from the call of create to the end of the first exec, and the box, which is the caller's to close."""
    start = time.perf_counter()
    box = subject.create(memory)
    try:
        box.execute()
    except BaseException:
        box.close()
        raise
    return time.perf_counter() - start, box
