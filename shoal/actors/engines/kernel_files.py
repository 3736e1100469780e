"""Reads files that the kernel writes as they are read: of processes and of control groups."""

from __future__ import annotations

import os
from typing import Final

_PIECE: Final = 64 * 1024


def read_kernel(path: str | os.PathLike[str]) -> str:
    """All of one; `OSError`. A sandbox's life reads a hundred of them, and `open`, with its buffers and its decoder,
    takes two to three times as long."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(file, _PIECE):
            pieces.append(piece)
    finally:
        os.close(file)
    return b"".join(pieces).decode("utf-8", "surrogateescape")


def start_of(pid: int) -> int:
    """When the process started, in clock ticks after boot, which tells it from a later one of the same pid; 0 if there
    is none."""
    try:
        stat = read_kernel(f"/proc/{pid}/stat")
        return int(stat.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
