"""A file of 10 MiB, in and out."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from tests.bench.stats import Samples, samples
from tests.bench.subject import Subject

SIZE = 10 * 1024 * 1024  # bytes
ROUNDS = 8
PATH = "/tmp/bench.bin"


def write_and_read(subjects: Sequence[Subject]) -> tuple[dict[str, Samples], dict[str, Samples]]:
    """The times of writes and of reads. What is read is compared with what was written."""
    data = random.Random(0).randbytes(SIZE)  # does not compress: no layer between can make it look faster than it is
    boxes = {subject.name: subject.create() for subject in subjects}
    exact = {subject.name: subject.exact for subject in subjects}
    writes: dict[str, list[float]] = {name: [] for name in boxes}
    reads: dict[str, list[float]] = {name: [] for name in boxes}
    try:
        for turn in range(ROUNDS + 1):
            for name, box in boxes.items():
                start = time.perf_counter()
                box.write(PATH, data)
                written = time.perf_counter()
                found = box.read(PATH)
                done = time.perf_counter()
                if exact[name] and found != data:
                    raise RuntimeError(f"{name} read something else than it wrote")
                if turn > 0:  # the first is the warm-up
                    writes[name].append(written - start)
                    reads[name].append(done - written)
    finally:
        for box in boxes.values():
            box.close()
    return (
        {name: samples("s", values) for name, values in writes.items()},
        {name: samples("s", values) for name, values in reads.items()},
    )
