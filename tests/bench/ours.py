"""Which of the machine's processes belong to the cluster, its engine and the containers on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from shoal.cluster.local import processes
from tests.bench.cluster import Bench


def of(bench: Bench) -> Callable[[], set[int]]:
    """Tells their pids, as they are at each call."""

    def now() -> set[int]:
        ray = {process.pid for process in processes.of_cluster(bench.file.cluster, Path(bench.file.temp_dir))}
        return with_descendants({*bench.engine.processes(), *bench.docker.processes(), *ray}, parent_of())

    return now


def parent_of(proc: Path = Path("/proc")) -> dict[int, int]:
    """The parent of every process."""
    parents = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                fields = (
                    (entry / "stat").read_bytes().rpartition(b")")[2].split()
                )  # the name before it may hold anything
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    return parents


def with_descendants(roots: Iterable[int], parents: dict[int, int]) -> set[int]:
    """The roots, their children, those of these, and so on."""
    children = defaultdict(list)
    for pid, parent in parents.items():
        children[parent].append(pid)
    found: set[int] = set()
    pending = list(roots)
    while pending:
        pid = pending.pop()
        if pid not in found:
            found.add(pid)
            pending += children[pid]
    return found
