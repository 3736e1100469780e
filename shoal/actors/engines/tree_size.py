"""Measures the size of a hostile directory tree.

Code in a container may change the tree while it is counted: links that lead out, invalid names, trees deeper than a
path or the open descriptors allow, files that vanish. So nothing is opened by path or through a link. The walk holds
one directory open, descends by name without following links, and ascends by `..`, where it checks that it is where it
came from.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Else reading would change the access times in the tree.
_QUIET = os.O_NOATIME

BLOCK = 512
ENTRY = 1024
"""Every entry counts at least so many bytes: countless empty files fill a disk, too."""
LINKS_REMEMBERED = 1_000_000
"""Files with several names that are told apart. Beyond it each name counts: memory here is bounded, whatever is done in
there."""
WAITING = 1_000_000
"""Directories that may wait to be seen. A tree with more counts as beyond its limit, for the same reason."""


def tree_size(root: Path, *, limit: int) -> int:
    """Bytes that the tree below `root`, or the file `root`, takes; stops beyond `limit`. A file with several names
    counts once. Files that vanish or move meanwhile may or may not count. Raises `OSError` only if `root` itself cannot
    be read."""
    itself = os.lstat(root)
    if stat.S_ISREG(itself.st_mode):
        return itself.st_blocks * BLOCK
    walk = _Walk(limit)
    fd = os.open(root, _DIRECTORY)
    try:
        walk.run(fd)
    finally:
        walk.close()
    return walk.total


@dataclass(slots=True)
class _Level:
    """A directory on the way down, and its subdirectories that are still to be counted."""

    identity: tuple[int, int]
    pending: list[str]


@dataclass(slots=True)
class _Walk:
    limit: int
    total: int = 0
    fd: int = -1
    waiting: int = 0
    levels: list[_Level] = field(default_factory=list)
    linked: set[int] = field(default_factory=set)

    def run(self, root: int) -> None:
        self.fd = root
        status = os.fstat(root)
        device = status.st_dev
        self.levels.append(_Level((device, status.st_ino), self._count(device)))
        while self.levels and self.total <= self.limit:
            level = self.levels[-1]
            if level.pending:
                self.waiting -= 1
                self._down(level.pending.pop(), device)
            else:
                self.levels.pop()
                if self.levels and not self._up(self.levels[-1].identity):
                    # The directory was moved meanwhile: the rest of the walk might leave the tree.
                    return

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _down(self, name: str, device: int) -> None:
        child = _open_directory(name, self.fd)
        if child < 0:
            return
        status = os.fstat(child)
        if status.st_dev != device:
            os.close(child)
            return
        os.close(self.fd)
        self.fd = child
        self.levels.append(_Level((device, status.st_ino), self._count(device)))

    def _up(self, expected: tuple[int, int]) -> bool:
        try:
            parent = os.open("..", _DIRECTORY, dir_fd=self.fd)
        except OSError:
            return False
        os.close(self.fd)
        self.fd = parent
        status = os.fstat(parent)
        return (status.st_dev, status.st_ino) == expected

    def _count(self, device: int) -> list[str]:
        """Adds up the entries of the open directory; returns the names of its subdirectories."""
        directories: list[str] = []
        try:
            with os.scandir(self.fd) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry.name)
                        self.waiting += 1
                        if self.waiting > WAITING:
                            self.total = self.limit + 1
                    elif status.st_nlink > 1 and status.st_dev == device:
                        if status.st_ino in self.linked:
                            continue
                        if len(self.linked) < LINKS_REMEMBERED:
                            self.linked.add(status.st_ino)
                    self.total += max(status.st_blocks * BLOCK, ENTRY)
                    if self.total > self.limit:
                        return []
        except OSError:
            # It was removed while it was read.
            return directories
        return directories


def _open_directory(name: str, parent: int) -> int:
    """A descriptor, or -1 if the directory is gone, is no directory any more, or may not be read."""
    for flags in (_DIRECTORY | _QUIET, _DIRECTORY):
        try:
            return os.open(name, flags, dir_fd=parent)
        except PermissionError:
            # Only the owner and root may open without changing the access time.
            continue
        except OSError:
            return -1
    return -1
