"""Empties a hostile directory tree.

Code in a container may have nested directories deeper than a path may be long, than there are descriptors, or than a
program may recurse. So this never descends: it moves what lies in a directory up to the top, and then removes the
directory. It holds two descriptors, and follows no link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from itertools import count
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def empty_tree(root: Path) -> None:
    """Removes all that is in `root`. Nobody may write there meanwhile; somebody may remove. Raises `OSError` for what
    cannot be removed, and if `root` itself cannot be read."""
    top = os.open(root, _DIRECTORY)
    unknown = secrets.token_hex(8)  # to whoever made the tree, so no name is taken
    names = (f".{unknown}.{number}" for number in count())
    try:
        while True:
            nested = False
            with os.scandir(top) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        if entry.is_dir(follow_symlinks=False):
                            nested = True  # what it held is at the top now, where this scan need not see it
                            _dissolve(entry.name, top, names)
                        else:
                            os.unlink(entry.name, dir_fd=top)
            if not nested:
                return
    finally:
        os.close(top)


def _dissolve(name: str, top: int, names: Iterator[str]) -> None:
    """Removes a directory at the top; its subdirectories are at the top then, under new names."""
    inside = os.open(name, _DIRECTORY, dir_fd=top)
    try:
        with os.scandir(inside) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        _lift(entry.name, inside, top, names)
                    else:
                        os.unlink(entry.name, dir_fd=inside)
    finally:
        os.close(inside)
    os.rmdir(name, dir_fd=top)


def _lift(name: str, inside: int, top: int, names: Iterator[str]) -> None:
    try:
        os.rmdir(name, dir_fd=inside)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    else:
        return
    os.rename(name, next(names), src_dir_fd=inside, dst_dir_fd=top)
