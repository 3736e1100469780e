"""Which of the machine's processes belong to the cluster, its engine and the containers on it."""

from __future__ import annotations

import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import docker

from shoal.cluster.local import processes
from shoal.model.cluster_file import ClusterFile


def of(cluster: ClusterFile) -> Callable[[], set[int]]:
    """Tells their pids, as they are at each call."""

    def now() -> set[int]:
        parents = parent_of()
        inits = container_inits(cluster.engine_address)
        shims = {parents[pid] for pid in inits if parents.get(pid, 1) > 1}
        ray = {process.pid for process in processes.of_cluster(cluster.cluster, Path(cluster.temp_dir))}
        return with_descendants({engine_pid(cluster.engine_address), *inits, *shims, *ray}, parents)

    return now


def container_inits(engine_address: str) -> set[int]:
    """The first process of every container that runs."""
    client = docker.APIClient(base_url=engine_address)
    try:
        pids = set()
        for container in client.containers():
            try:
                pids.add(int(client.inspect_container(container["Id"])["State"]["Pid"]))
            except docker.errors.NotFound:
                continue  # gone since
        return pids - {0}
    finally:
        client.close()


def engine_pid(engine_address: str) -> int:
    """The process that listens on a `unix:` address."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(engine_address.removeprefix("unix://"))
        pid, _, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


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
