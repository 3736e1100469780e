"""What a container writes: the upper directory of its root filesystem, on a disk of its own or in its directory.
Blocks: called in the engine's threads.

A layer of empty files and directories lies above the image's layers: what is mounted over is there then, whatever the
image has at these names, and is no part of what the container has written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.actors.engines.contract import AGENT_PATH, RUN_MOUNT, ContainerSpec, Mount
from shoal.actors.engines.disks import Disks, disks, mounts
from shoal.actors.engines.disks.failures import disk_errors
from shoal.actors.engines.empty_tree import empty_tree
from shoal.actors.engines.isolation import hosts_file
from shoal.actors.engines.oci.bundle import FILTER_PATH
from shoal.actors.engines.tree_size import tree_size
from shoal.model.errors import FailedPrecondition

_DIRECTORIES: Final = ("dev", "etc", "proc", "sys", RUN_MOUNT[1:])
_FILES: Final = ("etc/hosts", "etc/hostname", "etc/resolv.conf", AGENT_PATH[1:], FILTER_PATH[1:])


@dataclass(frozen=True, slots=True)
class Written:
    """What a container has changed. `digest`: its image's; `upper`: where it lies; `mounted`: the names in it over
    which something was mounted: they are the runtime's work."""

    digest: str
    upper: Path
    mounted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Writable:
    """Where a container's `upper` and `work` lie, with its `hosts` and `hostname`; `root`: where its root filesystem is
    mounted while a runtime starts it."""

    top: Path
    root: Path

    @property
    def upper(self) -> Path:
        return self.top / "upper"

    @property
    def images(self) -> Path:
        """What is written into images that are mounted into the container."""
        return self.top / "images"

    def prepare(self, spec: ContainerSpec) -> tuple[Mount, Mount]:
        """Makes its directories and files; what is to be mounted of them."""
        for directory in (self.upper, self.top / "work", self.root):
            directory.mkdir(mode=0o755, exist_ok=True)
        return (
            Mount(self._write("hosts", hosts_file(spec.hostname)), "/etc/hosts", read_only=False),
            Mount(self._write("hostname", f"{spec.hostname}\n"), "/etc/hostname", read_only=False),
        )

    def copy_filter(self, file: Path) -> Path:
        """Puts the filter of system calls here as well: what is mounted from here tells inside no path of the
        machine's."""
        path = self.top / "filter"
        shutil.copyfile(file, path)
        path.chmod(0o444)
        return path

    def mount(self, lower: Sequence[Path]) -> None:
        """Mounts the root filesystem, `lower` uppermost first. `OSError`."""
        self.root.mkdir(exist_ok=True)
        mounts.overlay(self.root, lower, self.upper, self.top / "work")

    def unmount(self) -> None:
        """Takes the root filesystem from the machine; what runs on it keeps it. Idempotent; `OSError`."""
        mounts.detach(self.root)

    def used(self, limit: int) -> int:
        """Bytes written; `OSError` if it is gone."""
        total = 0
        for tree in (self.upper, self.images, self.top / "hosts", self.top / "hostname"):
            if tree == self.images and not tree.exists():
                continue
            total += tree_size(tree, limit=limit - total)
            if total > limit:
                break
        return total

    def empty(self) -> None:
        """Removes what was written, whatever tree it is. Idempotent; `OSError`."""
        for tree in (self.upper, self.top / "work", self.images):
            with contextlib.suppress(FileNotFoundError):
                empty_tree(tree)

    def _write(self, name: str, text: str) -> Path:
        path = self.top / name
        path.write_text(text)
        path.chmod(0o644)
        return path


def place_of(spec: ContainerSpec, own: Disks | None) -> str | None:
    """Where the container's own disk is to be mounted, if it gets one."""
    return str(spec.disk_dir) if own is not None and spec.disk and spec.disk_dir is not None else None


def make_disk(own: Disks, spec: ContainerSpec) -> None:
    """Makes and mounts the container's own disk. `Unavailable`."""
    assert spec.disk_dir is not None
    with disk_errors(spec.key):
        own.make(spec.disk_dir, spec.disk, keep=spec.keep)


def open_disk(own: Disks | None, key: str, point: str) -> None:
    """Mounts the disk of a container that is kept again. `Unavailable`."""
    if own is None:
        raise FailedPrecondition(
            f"container {key} has a disk of its own, which this machine cannot mount any more; run `shoal doctor`",
            state="exited",
        )
    with disk_errors(key):
        own.open(Path(point))


def put_away(key: str, top: Path, *, is_disk: bool) -> None:
    """What a container wrote is on the machine's disk afterwards. Nothing runs on it any more. `Unavailable`."""
    with disk_errors(key):
        disk = disks.find(key) if is_disk else None
        if disk is not None:
            disks.unmount(disk)
        elif not is_disk:
            file = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                mounts.sync(file)
            finally:
                os.close(file)


def make_mount_points(directory: Path) -> None:
    """The layer above all images: mount points, and nothing in them. Idempotent."""
    for name in _DIRECTORIES:
        (directory / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in _FILES:
        path = directory / name
        path.touch(mode=0o644, exist_ok=True)


def make_kept_tmp(directory: Path) -> None:
    """A layer with something in `/tmp`, for gVisor: over an empty `/tmp` it mounts a file system in memory, where
    neither limits nor snapshots see what is written. Idempotent."""
    tmp = directory / "tmp"
    (tmp / ".gvisor").mkdir(mode=0o755, parents=True, exist_ok=True)
    tmp.chmod(0o1777)
