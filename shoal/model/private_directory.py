"""Directories that no other account of the machine may enter."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from shoal.model.errors import FailedPrecondition


def make_private_directory(directory: Path) -> None:
    """Makes the directory, with its parents, or closes the one that is there: mode 0700.

    `FailedPrecondition` if it belongs to another user, who could open it again.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = directory.stat().st_uid
    if owner != os.geteuid():
        raise FailedPrecondition(
            f"{directory} belongs to user {owner}, who could put files in its way; remove it, or choose another place",
            state="foreign_directory",
        )
    directory.chmod(0o700)


def open_to_others(directory: Path) -> str | None:
    """Why other accounts may get into the directory, or put another in its place; None if they can't, or if it is not
    there."""
    try:
        found = directory.stat()
    except FileNotFoundError:
        return None
    if found.st_uid not in (0, os.geteuid()):
        return f"belongs to user {found.st_uid}"
    if found.st_mode & 0o077:
        return f"has mode {stat.S_IMODE(found.st_mode):04o}"
    for parent in directory.parents:
        above = parent.stat()
        if above.st_uid not in (0, os.geteuid()):
            return f"lies in {parent}, which belongs to user {above.st_uid}"
        if above.st_mode & 0o002 and not above.st_mode & stat.S_ISVTX:
            return f"lies in {parent}, where everybody may write"
    return None
