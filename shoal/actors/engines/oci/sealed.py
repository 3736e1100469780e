"""A runtime's program in memory, sealed against every change.

A container must never write to the program that starts it, which it could otherwise reach while that enters it. So
runc puts a copy of itself in the program's place at each start, or a mount that is read-only, and executes itself once
more: 2 to 3 ms of CPU. It does neither where its program is such a file already. Blocks: called in the engine's
threads.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

_log = logging.getLogger(__name__)

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""Exactly those that runc asks for."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """`file`: its descriptor, None if there can be none; `version`: of the program that it was made of."""

    version: tuple[int, ...]
    file: int | None


class SealedPrograms:
    """The copies of one engine, as long as it is open. A program that was replaced is copied anew."""

    def __init__(self) -> None:
        self._copies: dict[str, _Copy] = {}
        self._lock = threading.Lock()

    @contextmanager
    def of(self, program: str) -> Iterator[str]:
        """What to execute in the program's place, within the block: the program itself, where this kernel has no such
        files or does not execute them. `OSError` if there is no such program."""
        with self._lock:
            copy = self._copy_of(program)
            file = None if copy.file is None else os.dup(copy.file)
        try:
            yield program if file is None else f"/proc/{os.getpid()}/fd/{file}"
        finally:
            if file is not None:
                os.close(file)

    def close(self) -> None:
        """Lets them go. Idempotent."""
        with self._lock:
            while self._copies:
                _close(self._copies.popitem()[1])

    def _copy_of(self, program: str) -> _Copy:
        status = os.stat(program)
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        copy = self._copies.get(program)
        if copy is None or copy.version != version:
            if copy is not None:
                _close(copy)
            copy = self._copies[program] = _Copy(version, _sealed(program))
        return copy


def _sealed(program: str) -> int | None:
    try:
        file = os.memfd_create(os.path.basename(program), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(program, "rb") as source, open(file, "wb", closefd=False) as copy:
                shutil.copyfileobj(source, copy)
            os.fchmod(file, 0o500)  # refused where the kernel executes no such files
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(file)
            raise
    except OSError as error:
        _log.info("%s copies itself at each start, as it cannot be kept in sealed memory: %s", program, error)
        return None
    return file


def _close(copy: _Copy) -> None:
    if copy.file is not None:
        os.close(copy.file)
