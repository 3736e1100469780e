"""Images of what a sandbox has changed: how long taking one lasts, and a create from one beside one from its base."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence

from tests.bench.shoalpy import Shoal
from tests.bench.stats import Samples, samples
from tests.bench.subject import MEMORY_LIMIT, Subject

CHANGED = 10 << 20  # bytes
ROUNDS = 5
CREATES = 6

_unlike = itertools.count(MEMORY_LIMIT + 1000)


def taken(subjects: Sequence[Subject], quiet: Callable[[], None]) -> dict[str, Samples]:
    """From the call to the image, where a file of `CHANGED` bytes is new."""
    times: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for turn in range(ROUNDS + 1):
        for subject in subjects:
            with subject.boxes(1) as (box,):
                box.write("/root/changed", os.urandom(CHANGED))
                quiet()
                start = time.perf_counter()
                remove = box.snapshot()
                seconds = time.perf_counter() - start
            remove()
            if turn > 0:  # the first is the warm-up
                times[subject.name].append(seconds)
    return {name: samples("s", values) for name, values in times.items()}


def created_from(subject: Shoal, quiet: Callable[[], None]) -> Samples:
    """Cold creates to their first exec: from a snapshot, as a multiple of the next one from its base."""
    ratios = []
    with subject.boxes(1) as (box,):
        box.write("/root/changed", os.urandom(CHANGED))
        image = subject.image_of(box)
    try:
        for turn in range(CREATES + 1):
            seconds = []
            for each in (image, None):
                quiet()
                start = time.perf_counter()
                made = subject.create(next(_unlike), each)
                made.execute()
                seconds.append(time.perf_counter() - start)
                made.close()
            if turn > 0:
                ratios.append(seconds[0] / seconds[1])
    finally:
        subject.client.delete_image(image, when_unused=True)
    return samples("×", ratios)
