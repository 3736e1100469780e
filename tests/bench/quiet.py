"""Waiting until the machine has nothing else to do, so that one measure does not pay for the one before."""

from __future__ import annotations

import time
from pathlib import Path

BUSY = 0.15  # of all cores
AT_MOST = 3.0  # seconds: on a machine that is never quiet the measures go on


def wait_quiet() -> None:
    """Returns once less than `BUSY` of the CPU was used for 0.2 s, or after `AT_MOST` seconds."""
    deadline = time.monotonic() + AT_MOST
    before = cpu_ticks()
    while time.monotonic() < deadline:
        time.sleep(0.2)
        after = cpu_ticks()
        busy, total = after[0] - before[0], after[1] - before[1]
        if total > 0 and busy / total < BUSY:
            return
        before = after


def cpu_ticks(stat: Path = Path("/proc/stat")) -> tuple[int, int]:
    """Ticks that the CPUs have worked, and all ticks, since the machine started."""
    fields = [int(field) for field in stat.read_text("ascii").splitlines()[0].split()[1:9]]
    idle = fields[3] + fields[4]  # idle and waiting for a disk
    return sum(fields) - idle, sum(fields)
