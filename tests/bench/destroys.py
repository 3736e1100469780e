"""How long it takes to take a sandbox away: for whoever asks for it, and until its container is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tests.bench.stats import Samples, samples
from tests.bench.subject import MEMORY_LIMIT, Subject

TURNS = 8
_GONE_S = 30.0


def seen_and_gone(
    subjects: Sequence[Subject], containers: Callable[[str], set[str]], quiet: Callable[[], None]
) -> tuple[dict[str, Samples], dict[str, Samples]]:
    """Both, in seconds. Each sandbox has been used once. `containers`: those that a
    subject may have now."""
    seen: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    gone: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for turn in range(TURNS + 1):
        for subject in subjects:
            box = subject.create(MEMORY_LIMIT)
            box.execute()
            quiet()
            there = containers(subject.name)
            start = time.perf_counter()
            box.close()
            until_answered = time.perf_counter() - start
            while there <= containers(subject.name):
                if time.perf_counter() - start > _GONE_S:
                    raise TimeoutError(f"the container of {subject.name} was still there after {_GONE_S:g} s")
                time.sleep(0.002)
            if turn > 0:  # the first is the warm-up
                seen[subject.name].append(until_answered)
                gone[subject.name].append(time.perf_counter() - start)
    return _samples(seen), _samples(gone)


def _samples(times: dict[str, list[float]]) -> dict[str, Samples]:
    return {name: samples("s", values) for name, values in times.items()}
