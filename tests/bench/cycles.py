"""Whole lives by many callers: create, one exec, destroy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.bench.stats import Samples, percentile, samples
from tests.bench.subject import MEMORY_LIMIT, Subject

CYCLES = 300
CALLERS = 32


def rates(subjects: Sequence[Subject], quiet: Callable[[], None]) -> tuple[dict[str, Samples], Samples]:
    """Lives per second of each subject, and the 95th percentile of a create's seconds of the last one."""
    found: dict[str, Samples] = {}
    taken: list[float] = []
    for subject in subjects:
        quiet()
        start = time.perf_counter()
        with ThreadPoolExecutor(CALLERS) as callers:
            taken = list(callers.map(_life, [subject] * CYCLES))
        found[subject.name] = samples("/s", [CYCLES / (time.perf_counter() - start)])
    return found, samples("s", [percentile(taken, 95)])


def _life(subject: Subject) -> float:
    """The seconds of its create."""
    start = time.perf_counter()
    box = subject.create(MEMORY_LIMIT)
    seconds = time.perf_counter() - start
    try:
        box.execute()
    finally:
        box.close()
    return seconds
