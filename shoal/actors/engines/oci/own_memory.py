"""The memory of a container that was suspended, in the directory of its record. Blocks: called in the engine's threads.

<place>/memory/       whole: the container goes on from it, until it is dropped
<place>/memory.new/   being written or removed; what a crash left of that goes at the next `begin` or `drop`
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def find(place: Path) -> Path | None:
    """Where the memory is; None if there is none that is whole."""
    path = place / "memory"
    return path if path.is_dir() else None


def begin(place: Path) -> Path:
    """An empty directory for memory that is about to be written."""
    path = _unfinished(place)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    return path


def keep(place: Path) -> None:
    """What was written since `begin` is whole. It outlives a crash of the machine from then on."""
    path = _unfinished(place)
    for file in (*path.iterdir(), path):
        _sync(file)
    path.rename(place / "memory")
    _sync(place)


def drop(place: Path) -> None:
    """Idempotent. Half of it is never taken for the whole."""
    path = _unfinished(place)
    shutil.rmtree(path, ignore_errors=True)
    try:
        (place / "memory").rename(path)
    except FileNotFoundError:
        return
    shutil.rmtree(path, ignore_errors=True)


def _unfinished(place: Path) -> Path:
    return place / "memory.new"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
