"""Tells whether the daemon's storage driver can enforce a disk limit."""

from __future__ import annotations

from pathlib import PurePosixPath


def gives_quota(driver: str, backing: str, root: str, mountinfo: str) -> bool:
    """Only overlay2 on XFS with project quotas can. `mountinfo`: the text of `/proc/self/mountinfo`, as the daemon does
    not tell the mount options."""
    if driver != "overlay2" or backing != "xfs":
        return False
    best, options = -1, ""
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields, device = left.split(), right.split()
        if not separator or len(fields) < 6 or len(device) < 3:
            continue
        point = PurePosixPath(fields[4])
        if PurePosixPath(root).is_relative_to(point) and len(point.parts) >= best:
            best, options = len(point.parts), f"{fields[5]},{device[2]}"
    return bool({"prjquota", "pquota"} & set(options.split(",")))
