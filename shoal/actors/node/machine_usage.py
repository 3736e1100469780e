"""What the whole machine uses now, read from the kernel's files in a tenth of a millisecond."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from shoal.model.spec import MIB

_TICKS = os.sysconf("SC_CLK_TCK")
_LEAST_S = 0.5


@dataclass(frozen=True, slots=True)
class MachineUsage:
    """CPU in cores, over the seconds since the look before; memory (without what the kernel would drop) and disk in
    MiB."""

    cpu: float
    memory: int
    disk: int


def _proc(name: str) -> str:
    return Path("/proc", name).read_text("ascii", "replace")


@dataclass(slots=True)
class MachineMeter:
    """`directory`: on the file system that holds the sandboxes' disks; `read`: a file of `/proc`."""

    directory: Path
    read: Callable[[str], str] = _proc
    _before: tuple[float, float] | None = None
    _cpu: float = field(default=0.0)

    def look(self) -> MachineUsage:
        """Blocks, for a moment."""
        now, busy = _busy(self.read("stat"), float(self.read("uptime").split()[0]))
        if self._before is None:
            self._before = now, busy
        elif now - self._before[0] >= _LEAST_S:
            self._cpu = max(0.0, (busy - self._before[1]) / (now - self._before[0]))
            self._before = now, busy
        memory = _table(self.read("meminfo"))
        return MachineUsage(
            round(self._cpu, 2),
            max(0, memory["MemTotal"] - memory.get("MemAvailable", memory.get("MemFree", 0))) // 1024,
            shutil.disk_usage(self.directory).used // MIB,
        )


def _busy(stat: str, uptime: float) -> tuple[float, float]:
    """(seconds since the boot, seconds for which cores were busy)."""
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, stat.split("\n", 1)[0].split()[1:9])
    return uptime, (user + nice + system + irq + softirq + steal) / _TICKS


def _table(meminfo: str) -> dict[str, int]:
    """KiB by name."""
    pairs = (line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    return {name: int(value.split()[0]) for name, value in pairs if value.split()[:1]}
