"""Files that show a container its own size in place of its machine's, made once for each size and shared by all
containers of that size.

Why not LXCFS: these are there on every node, cost nothing while they are read, and no process can take them away
by ending.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

from shoal.actors.engines.contract import Mount
from shoal.actors.node import size_texts

_MOST_SIZES: Final = 1024
"""Memory sizes of which files are kept: 4 KiB each. The one unused for longest goes first; containers keep theirs."""

_PROC: Final = Path("/proc")
_CPU_DIRECTORY: Final = Path("/sys/devices/system/cpu")


class SizeFiles:
    """The files of one node, below `root`. Methods block, the first time for some milliseconds."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._cpus = len(os.sched_getaffinity(0))
        self._memories: OrderedDict[int, Path] = OrderedDict()
        self._directories: dict[int, Path] = {}
        self._lock = threading.Lock()

    def variables(self, cpu: float) -> dict[str, str]:
        """Environment variables for a container limited to so many cores."""
        return size_texts.cpu_variables(size_texts.visible_cpus(cpu, self._cpus))

    def mounts(self, cpu: float, memory: int) -> tuple[Mount, ...]:
        """What a container limited to so many cores and MiB mounts."""
        with self._lock:
            directory = self._directory(size_texts.visible_cpus(cpu, self._cpus))
            meminfo = self._meminfo(memory)
        found = [Mount(meminfo, "/proc/meminfo")]
        found += [Mount(directory / name, f"/proc/{name}") for name in ("cpuinfo", "stat", "swaps")]
        if _CPU_DIRECTORY.is_dir():
            found.append(Mount(directory / "cpu", str(_CPU_DIRECTORY)))
        return tuple(found)

    def _directory(self, cpus: int) -> Path:
        directory = self._directories.get(cpus)
        if directory is None:
            directory = self._directories[cpus] = self._root / f"cpu-{cpus}"
            if not directory.exists():
                _make_directory(directory, cpus)
        return directory

    def _meminfo(self, memory: int) -> Path:
        file = self._memories.get(memory)
        if file is None:
            file = self._memories[memory] = self._root / f"memory-{memory}"
            _write(file, size_texts.meminfo(memory))
        self._memories.move_to_end(memory)
        while len(self._memories) > _MOST_SIZES:
            self._memories.popitem(last=False)[1].unlink(missing_ok=True)
        return file


def _make_directory(directory: Path, cpus: int) -> None:
    """All or nothing: a node may be killed at any time, and a container shows what it finds."""
    unfinished = directory.with_name(f"{directory.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _write(unfinished / "cpuinfo", size_texts.cpuinfo((_PROC / "cpuinfo").read_text(), cpus))
    _write(unfinished / "stat", size_texts.stat((_PROC / "stat").read_text(), cpus))
    _write(unfinished / "swaps", size_texts.SWAPS)
    for name, text in size_texts.cpu_directory(cpus):
        _write(unfinished / "cpu" / name, text)
    unfinished.rename(directory)


def _write(file: Path, text: str) -> None:
    """A file that everybody may read, in directories that everybody may enter."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o444)
