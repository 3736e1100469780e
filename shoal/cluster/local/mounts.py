"""Unmounts what a cluster left mounted."""

from __future__ import annotations

import subprocess
from pathlib import Path

from shoal.cluster.local import packages


def unmount_below(directory: Path) -> None:
    """Unmounts everything at or below `directory`, the deepest first."""
    prefix = f"{directory}/"
    # The kernel writes spaces and the like as octal escapes.
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split()[1].encode().decode("unicode_escape") for line in lines]
    for point in sorted((p for p in points if f"{p}/".startswith(prefix)), key=len, reverse=True):
        subprocess.run([packages.find("umount") or "umount", "-l", point], capture_output=True, check=False)
