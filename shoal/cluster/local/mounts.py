"""Unmounts what a cluster left mounted."""

from __future__ import annotations

import subprocess
from pathlib import Path

from shoal.model import programs


def unmount_below(directory: Path) -> bool:
    """Unmounts everything at or below `directory`, the deepest first; whether nothing is mounted there any more: what
    is, would be removed with the directory."""
    for point in sorted(_points_below(directory), key=len, reverse=True):
        subprocess.run([programs.find("umount") or "umount", "-l", point], capture_output=True, check=False)
    return not _points_below(directory)


def _points_below(directory: Path) -> list[str]:
    # The kernel writes spaces and the like as octal escapes.
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split()[1].encode().decode("unicode_escape") for line in lines]
    return [point for point in points if f"{point}/".startswith(f"{directory}/")]
