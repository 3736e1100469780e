"""What an idle sandbox costs the machine: memory (PSS), processes, file descriptors."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.subject import Subject

FIRST = 4  # sandboxes that are there before, so that what is made once and for all is not counted
MORE = 8

_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Usage:
    """All processes of the machine, by the name of their program: PSS in bytes, how many they are, their descriptors."""

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


def per_sandbox(subject: Subject, settled: Callable[[], None]) -> Cost:
    """The difference that `MORE` idle sandboxes make to the whole machine, divided among them."""
    with subject.boxes(FIRST):
        settled()
        before = usage()
        with subject.boxes(MORE):
            settled()
            after = usage()
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


def usage(proc: Path = Path("/proc")) -> Usage:
    """What is there now. A process that goes while it is looked at is left out; kernel threads have no memory of their own."""
    found = Usage(Counter(), Counter(), Counter())
    for directory in proc.iterdir():
        if not directory.name.isdigit():
            continue
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


def wait_settled(still_for: float = 2.0, at_most: float = 15.0) -> None:
    """Returns once the number of processes has not changed for `still_for` seconds, or after `at_most`."""
    deadline = time.monotonic() + at_most
    last, since = -1, time.monotonic()
    while time.monotonic() < deadline:
        count = sum(1 for entry in Path("/proc").iterdir() if entry.name.isdigit())
        if count != last:
            last, since = count, time.monotonic()
        elif time.monotonic() - since >= still_for:
            return
        time.sleep(0.25)
