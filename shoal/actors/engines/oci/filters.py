"""The filter of system calls as the kernel runs it, taken from a container in which a runtime has installed it.

A runtime compiles the profile anew for each container, which takes more than half of the CPU time of a start: 23 ms of
40, measured with runc 1.1. So the first container of a node gets the profile, and its filter is read back from the
kernel; to all others the agent applies that (`SHOAL_SECCOMP`) before it does anything else, and the engine looks that
it has. Blocks: called in the engine's threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from shoal.actors.engines.oci.runtimes import Runtime
from shoal.model.errors import Internal

_log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long

# Numbers from <linux/ptrace.h>.
_SEIZE, _INTERRUPT, _DETACH, _GET_FILTER = 0x4206, 0x4207, 17, 0x420C
_WALL: Final = 0x40000000
_INSTRUCTION: Final = 8
_FILTERED: Final = b"\nSeccomp:\t2\n"
_STATUS: Final = 1 << 14
_APPLIED_S: Final = 10.0
_STOPPED_S: Final = 5.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.004


class Filters:
    """The filters of one profile, in `directory`. They are made again for another kernel or runtime."""

    def __init__(self, directory: Path, profile: Mapping[str, Any]) -> None:
        self._directory = directory
        self._profile = hashlib.sha256(json.dumps(profile, sort_keys=True).encode())
        self._refused = False

    def find(self, runtime: Runtime) -> Path | None:
        """The file with the filter that this runtime makes; None if there is none yet."""
        path = self._path(runtime)
        return path if path.exists() else None

    def learn(self, runtime: Runtime, pid: int) -> None:
        """Keeps the filter of a container's first process, in which no code of a sandbox's has run, for others. Where
        the kernel does not give it, each container goes on having the profile compiled."""
        path = self._path(runtime)
        if self._refused or path.exists():
            return
        try:
            program = _read(pid)
            self._directory.mkdir(mode=0o700, exist_ok=True)
            unfinished = path.with_suffix(f".{os.getpid()}")
            unfinished.write_bytes(program)
            unfinished.chmod(0o444)
            unfinished.replace(path)
        except OSError as error:
            self._refused = True
            _log.warning("each start compiles the seccomp profile, as the kernel does not show the filter: %s", error)

    def _path(self, runtime: Runtime) -> Path:
        status = os.stat(runtime.program)
        parts = ("", os.uname().release, runtime.program, str(status.st_mtime_ns), str(status.st_size))
        digest = self._profile.copy()
        digest.update("\0".join(parts).encode())
        return self._directory / digest.hexdigest()[:32]


def wait_applied(pid: int) -> None:
    """Waits until a container's first process has the filter. `Internal` if it does not get it."""
    deadline, pause = time.monotonic() + _APPLIED_S, _PAUSE_S
    try:
        status = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while _FILTERED not in os.pread(status, _STATUS, 0):
                if time.monotonic() > deadline:
                    raise Internal("the container's first process does not apply the filter of system calls")
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        finally:
            os.close(status)
    except OSError:
        raise Internal("the container's first process ended before it had its filter of system calls") from None


def _read(pid: int) -> bytes:
    """The filter of a process, which stands still for a moment."""
    _ptrace(_SEIZE, pid)
    _stop(pid)
    try:
        count = _ptrace(_GET_FILTER, pid)
        program = ctypes.create_string_buffer(count * _INSTRUCTION)
        _ptrace(_GET_FILTER, pid, 0, ctypes.addressof(program))
        return program.raw
    finally:
        _ptrace(_DETACH, pid)


def _stop(pid: int) -> None:
    """Has a process that this thread traces stand still. One that is just being executed may lose the request, so it is
    repeated."""
    deadline = time.monotonic() + _STOPPED_S
    while True:
        _ptrace(_INTERRUPT, pid)
        if os.waitpid(pid, _WALL | os.WNOHANG)[0] == pid:
            return
        if time.monotonic() > deadline:
            # It cannot be let go unless it stands still, and one that is traced must not be used.
            raise Internal("the container's first process does not stand still to have its filter read")
        time.sleep(_PAUSE_S)


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    result = int(_libc.ptrace(request, pid, address, data))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
