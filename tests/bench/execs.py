"""How long an exec takes, and how many go through in a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from tests.bench.stats import Samples, samples
from tests.bench.subject import Box, Subject

CALLERS = 16
ROUNDS = 4
LATENCY_WINDOW = 1.0  # seconds that each subject gets per round
RATE_WINDOW = 1.5


def latency(subjects: Sequence[Subject]) -> dict[str, Samples]:
    """One caller, one box, one exec after the other: the time of each."""
    boxes = {subject.name: subject.create() for subject in subjects}
    times: dict[str, list[float]] = {name: [] for name in boxes}
    try:
        for box in boxes.values():
            for _ in range(5):
                box.execute()
        for _ in range(ROUNDS):  # taking turns, so that a noisy second harms all alike
            for name, box in boxes.items():
                times[name] += timed_until(box.execute, LATENCY_WINDOW)
    finally:
        for box in boxes.values():
            box.close()
    return {name: samples("s", values) for name, values in times.items()}


def rate(subjects: Sequence[Subject], boxes_each: int, callers: int = CALLERS) -> dict[str, Samples]:
    """`callers` threads over `boxes_each` boxes: execs per second, one sample per round."""
    rates: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    with ExitStack() as stack:
        boxes = {subject.name: stack.enter_context(subject.boxes(boxes_each)) for subject in subjects}
        for turn in range(ROUNDS):
            for name, found in rates.items():
                rate = throughput(boxes[name], RATE_WINDOW if turn else 0.3, callers)
                if turn > 0:  # the first is the warm-up: every caller has its connection then
                    found.append(rate)
    return {name: samples("/s", values) for name, values in rates.items()}


def throughput(boxes: Sequence[Box], seconds: float, callers: int = CALLERS) -> float:
    """Execs per second of `callers` threads that call for so long, each at least once, counted to the end of the last
    one.
    """
    start = 0.0

    def begin() -> None:
        nonlocal start
        start = time.perf_counter()

    ready = threading.Barrier(callers, begin)  # they may take their time to come

    def caller(number: int) -> int:
        box, count = boxes[number % len(boxes)], 0
        ready.wait()
        while count == 0 or time.perf_counter() < start + seconds:
            box.execute()
            count += 1
        return count

    with ThreadPoolExecutor(callers) as pool:
        total = sum(pool.map(caller, range(callers)))
        return total / (time.perf_counter() - start)


def timed_until(call: Callable[[], None], seconds: float) -> list[float]:
    """Calls it again and again for so long, at least once; the time of each call."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
