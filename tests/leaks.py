"""What a cluster under test has on this machine, and what of it has leaked.

Each container has a record, a directory and, unless it has no network, an interface. One of these without the others is
a leak. Warm containers and idle slots are none.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from shoal.actors.engines.disks import mounts
from shoal.actors.names import CLUSTER_LABEL
from shoal.client import config_file
from shoal.cluster.local import engines, processes
from shoal.cluster.local import ray as local_ray
from shoal.cluster.local import state as local_state
from shoal.model.cluster_file import ClusterFile, ProcessRef

SETTLING_S = 45.0
"""Time for ended containers to go: two sweeps of the node, 15 s apart, on a busy machine."""


@dataclass(frozen=True, slots=True)
class Found:
    """Keys of containers, by what says that they are there; and what else a cluster has."""

    containers: frozenset[str]
    records: frozenset[str]
    disks: frozenset[str]
    kept_disks: frozenset[str]
    """Files of disks that outlive a stop."""
    directories: frozenset[str]
    interfaces: frozenset[str]
    holders: frozenset[str]
    """Sandboxes that hold a container."""
    relays: int
    gateways: int
    """One that is going, after a roll, still counts."""
    unfinished: frozenset[str]
    """Files that were being written."""


def look(cluster: ClusterFile) -> Found:
    """What there is now."""
    state, run_dir = Path(cluster.secret_path).parent, Path(cluster.run_dir) / cluster.cluster
    records = _records(state / "node" / "containers")
    return Found(
        containers=frozenset(_containers(cluster)),
        records=frozenset(records),
        disks=frozenset(entry.point.name for entry in mounts.table() if entry.point.parent == run_dir / "d"),
        kept_disks=frozenset(path.stem for path in _children(state / "node" / "disks")),
        directories=frozenset(path.name for path in _children(run_dir / "c")),
        interfaces=frozenset(_interfaces(cluster.settings["network"]["bridge"])),
        holders=frozenset(holder for holder in records.values() if holder is not None),
        relays=len(_listening(run_dir, "relay")),
        gateways=len(_listening(run_dir, "gateway")),
        unfinished=frozenset(
            str(path) for part in ("node", "controller") for path in files_below(state / part) if path.suffix == ".tmp"
        ),
    )


def problems(found: Found, before: Found | None = None) -> list[str]:
    """What is not as it should be; with `before`, also sandboxes that have come to stay."""
    wrong = []
    for one, other in (
        ("containers", "records"),
        ("directories", "records"),
        ("disks", "records"),
        ("kept_disks", "records"),
        ("interfaces", "containers"),
    ):
        extra = getattr(found, one) - getattr(found, other)
        if extra:
            wrong.append(f"{one} without {other}: {', '.join(sorted(extra))}")
    missing = found.records - found.containers
    if missing:
        wrong.append(f"records without containers: {', '.join(sorted(missing))}")
    if found.relays != 1:
        wrong.append(f"{found.relays} relays")
    if found.gateways < 1:
        wrong.append("no gateway")
    if found.unfinished:
        wrong.append(f"unfinished files: {', '.join(sorted(found.unfinished))}")
    if before is not None and found.holders - before.holders:
        wrong.append(f"sandboxes that live on: {', '.join(sorted(found.holders - before.holders))}")
    return wrong


def assert_none(cluster: ClusterFile, before: Found | None = None, within: float = SETTLING_S) -> None:
    """That nothing has leaked since `before`, once all has settled."""
    deadline = time.monotonic() + within
    while wrong := problems(look(cluster), before):
        assert time.monotonic() < deadline, f"leaked: {'; '.join(wrong)}"
        time.sleep(0.2)


def assert_nothing_left(cluster: ClusterFile) -> None:
    """That a cluster which was taken down has left nothing on this machine but what it keeps in its state directory."""
    run_dir = Path(cluster.run_dir)
    deadline = time.monotonic() + SETTLING_S
    state = Path(cluster.secret_path).parent
    while cluster.engine is not None and (shims(cluster) or _loop_devices(state)) and time.monotonic() < deadline:
        time.sleep(0.05)  # a shim ends by itself, a moment after its container; a disk is unmounted in the background
    left = {
        "processes": processes.of_cluster(cluster.cluster, Path(cluster.temp_dir))
        + processes.listening_below(run_dir / cluster.cluster),
        "engine": [cluster.engine] if cluster.engine is not None and processes.alive(cluster.engine) else [],
        "containers": _containers(cluster) if cluster.engine is None else [],
        "shims": shims(cluster) if cluster.engine is not None else [],
        "disks": _loop_devices(state),
        "mounts": [
            line
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if str(run_dir) in line or f"{state / 'oci'}/" in line  # another engine's directory is that one's own
        ],
        "files": list((run_dir / cluster.cluster).rglob("*"))
        + list(run_dir.glob("engine*")) * (cluster.engine is not None),
        "bridge": [p for p in (Path("/sys/class/net", cluster.settings["network"]["bridge"]),) if p.exists()],
        "rules": _tables(cluster.settings["network"]["bridge"]),
        "port": [cluster.api_listens] if cluster.api_listens and local_ray.answers(cluster.api_listens) else [],
        "token": [url for url in config_file.read().servers if url == cluster.api_url],
        "secrets": [p for p in (Path(cluster.secret_path), Path(cluster.auth_token_path)) if p.exists()],
    }
    assert not any(left.values()), {name: found for name, found in left.items() if found}


def shims(cluster: ClusterFile) -> list[str]:
    """Processes of an engine's that name the cluster's run directory."""
    return _commands(cluster.run_dir)


def files_below(directory: Path, *but: str) -> list[Path]:
    """All files at any depth, except in directories named in `but`. Files may come and go meanwhile."""
    found = []
    for place, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if name not in but]
        found += [Path(place, name) for name in names]
    return found


def _records(directory: Path) -> dict[str, str | None]:
    """Key → the sandbox that holds it, None for a warm one."""
    records: dict[str, str | None] = {}
    for path in _children(directory):
        if path.suffix == ".json":
            try:
                records[path.stem] = json.loads(path.read_text())["sandbox_id"]
            except OSError:
                continue  # removed meanwhile
    return records


def _containers(cluster: ClusterFile) -> list[str]:
    found = engines.at(cluster.engine_address, local_state.settings_of(cluster))
    return found.containers({CLUSTER_LABEL: cluster.cluster})


def _interfaces(bridge: str) -> list[str]:
    """The keys that the aliases of a bridge's interfaces tell."""
    keys = []
    for port in _children(Path("/sys/class/net", bridge, "brif")):
        try:
            alias = Path("/sys/class/net", port.name, "ifalias").read_text().split()
        except OSError:
            continue
        keys.append(alias[0] if alias else port.name)
    return keys


def _listening(run_dir: Path, mode: str) -> list[ProcessRef]:
    """The Go programs in that mode that listen below `run_dir`."""
    found = processes.listening_below(run_dir)
    return [process for process in found if mode in processes.command_line(process.pid)]


def _commands(text: str) -> list[str]:
    """Command lines that name `text`, except this process's and its parent's."""
    found = []
    for pid in psutil.pids():
        line = " ".join(processes.command_line(pid))
        if f"{text}/" in line and pid not in (os.getpid(), os.getppid()):
            found.append(f"{pid}: {line[:200]}")
    return found


def _loop_devices(state: Path) -> list[str]:
    """Those whose files lie in the state directory, also after their names are gone."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found += [str(path)] * (str(state) in path.read_text())
        except OSError:
            continue  # just detached
    return found


def _tables(bridge: str) -> list[str]:
    done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False, timeout=30)
    return [line for line in done.stdout.splitlines() if line.split()[-1] == f"shoal_{bridge}"]


def _children(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []
