"""What an idle sandbox costs the machine: memory (PSS), processes, file descriptors.

Counted are the processes of the cluster, the engine and the containers: what else runs on the machine comes and goes as
it likes.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.subject import Subject

FIRST = 4  # sandboxes that are there before, so that what is made once and for all is not counted
MORE = 8

_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Usage:
    """Processes by the name of their program: PSS in bytes, how many they are, their descriptors."""

    pss: Counter[str]
    processes: Counter[str]
    descriptors: Counter[str]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one sandbox adds. `pss` in MB (10⁶ bytes), `programs` the same by the name of the program."""

    pss: float
    processes: float
    descriptors: float
    programs: dict[str, float]


def per_sandbox(subject: Subject, ours: Callable[[], set[int]]) -> Cost:
    """The difference that `MORE` idle sandboxes make to the processes that `ours` tells, divided among them."""
    with subject.boxes(FIRST):
        before = usage(settled(ours))
        with subject.boxes(MORE):
            after = usage(settled(ours))
    return cost(before, after, MORE)


def cost(before: Usage, after: Usage, sandboxes: int) -> Cost:
    def difference(ours: Counter[str], theirs: Counter[str]) -> float:
        return (ours.total() - theirs.total()) / sandboxes

    programs = {name: (after.pss[name] - before.pss[name]) / sandboxes / 1e6 for name in after.pss | before.pss}
    return Cost(
        pss=difference(after.pss, before.pss) / 1e6,
        processes=difference(after.processes, before.processes),
        descriptors=difference(after.descriptors, before.descriptors),
        programs={name: round(value, 2) for name, value in sorted(programs.items()) if abs(value) >= 0.05},
    )


def usage(pids: Iterable[int], proc: Path = Path("/proc")) -> Usage:
    """What these processes hold now.

    One that goes while it is looked at is left out; kernel threads have no memory of their own.
    """
    found = Usage(Counter(), Counter(), Counter())
    for pid in pids:
        directory = proc / str(pid)
        try:
            pss = _PSS.search((directory / "smaps_rollup").read_bytes())
            name = (directory / "comm").read_text("utf-8", "replace").strip()
            descriptors = sum(1 for _ in (directory / "fd").iterdir())
        except OSError:
            continue
        if pss is not None:
            found.pss[name] += int(pss[1]) * 1024
            found.processes[name] += 1
            found.descriptors[name] += descriptors
    return found


def settled(ours: Callable[[], set[int]], still_for: float = 2.0, at_most: float = 10.0) -> set[int]:
    """The processes, once they have been the same for `still_for` seconds, or after `at_most`."""
    deadline = time.monotonic() + at_most
    last, since = ours(), time.monotonic()
    while time.monotonic() < deadline and time.monotonic() - since < still_for:
        time.sleep(0.25)
        now = ours()
        if now != last:
            last, since = now, time.monotonic()
    return last
