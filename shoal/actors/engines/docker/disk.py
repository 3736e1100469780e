"""Puts what a container may write on a disk of its own. Blocks: called in the engine's threads.

Between the daemon's "create" and "start", the directory of the container's layer and its volumes move to the disk. The
daemon would keep `/etc/hosts` and `/etc/hostname` beside the layer, so these are files on the disk from the start.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoal.actors.engines.contract import ContainerSpec, Mount
from shoal.actors.engines.disks import Disk, Disks
from shoal.actors.engines.disks.disks import find, release, remove, unmount
from shoal.actors.engines.disks.failures import disk_errors
from shoal.actors.engines.docker.request import DISK_LABEL, is_kept
from shoal.actors.engines.isolation import hosts_file

_PEER = struct.Struct("=3i")


def problem(disks: Disks, address: str, info: dict[str, Any]) -> str | None:
    """Why the daemon's containers can't have disks of their own; None: they can. `info`: the daemon's description."""
    if info.get("Driver") != "overlay2":
        return f"the engine keeps layers by {info.get('Driver')}, not by overlay2"
    if not _shares_mounts(address):
        return f"the engine at {address} does not see this process's mounts"
    return disks.problem()


def _shares_mounts(address: str) -> bool:
    """Whether the daemon sees what this process mounts."""
    path = address.removeprefix("unix://")
    if path == address:
        return False
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(path)
        pid, _, _ = _PEER.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    except OSError:
        return False


def make(disks: Disks, spec: ContainerSpec) -> tuple[Disk, ContainerSpec]:
    """The disk of a container that is to be created, and its description with what it needs of the disk.
    `Unavailable`."""
    assert spec.disk_dir is not None
    with disk_errors(spec.key):
        disk = disks.make(spec.disk_dir, spec.disk, keep=spec.keep)
        try:
            hosts = Mount(disk.write("hosts", hosts_file(spec.hostname)), "/etc/hosts", read_only=False)
            hostname = Mount(disk.write("hostname", f"{spec.hostname}\n"), "/etc/hostname", read_only=False)
        except OSError:
            discard(disks, disk)
            raise
    labels = {**spec.labels, DISK_LABEL: str(disk.point)} if spec.keep else spec.labels
    return disk, replace(spec, labels=labels, mounts=(hosts, hostname, *spec.mounts))


def discard(disks: Disks, disk: Disk) -> None:
    """Removes a disk whose container was not made."""
    remove(disk)
    disks.forget(disk.point.name)


def adopt(disk: Disk, key: str, found: dict[str, Any]) -> None:
    """Moves a created container's layer and volumes to its disk. `found`: the daemon's description. `Unavailable`."""
    with disk_errors(key):
        for number, tree in enumerate(trees(found)):
            # The layer's directory also holds what overlayfs works with, which must be on the same mount.
            disk.adopt(tree if number else tree.parent, f"tree-{number}")


def point_of(found: dict[str, Any]) -> Path | None:
    """Where a container that is kept has its disk, if it has one."""
    labels = found["Config"].get("Labels") or {}
    point = labels.get(DISK_LABEL)
    return Path(point) if point and is_kept(labels) else None


def open_again(disks: Disks, key: str, found: dict[str, Any]) -> None:
    """Mounts the disk of a container that was kept, below its layer and volumes. `Unavailable`."""
    point = point_of(found)
    if point is None:
        return
    with disk_errors(key):
        disk = disks.open(point)
        release(disk)  # a crash may have left some of it
        for number, tree in enumerate(trees(found)):
            disk.bind(tree if number else tree.parent, f"tree-{number}")


def put_away(key: str, found: dict[str, Any]) -> None:
    """Writes and unmounts the disk of a container that is kept and has exited. `Unavailable`."""
    disk = None if point_of(found) is None else find(key)
    if disk is not None:
        with disk_errors(key):
            unmount(disk)


def trees(found: dict[str, Any]) -> tuple[Path, ...]:
    """The directories that hold what a container writes: its layer, and the volumes that its image declares."""
    upper = ((found.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir")
    if not upper:
        return ()
    volumes = (Path(m["Source"]) for m in found.get("Mounts") or () if m.get("Type") == "volume" and m.get("Source"))
    return (Path(upper), *volumes)


def written(found: dict[str, Any]) -> tuple[Path, ...]:
    """All that a container without a disk of its own may write to: directories, and the files that the daemon keeps
    beside its layer. Empty if the daemon does not tell."""
    kept = trees(found)
    return (*kept, *(Path(found[name]) for name in ("HostsPath", "HostnamePath") if found.get(name))) if kept else ()
