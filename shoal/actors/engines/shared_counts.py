"""Bounds on what a container takes of the numbers that the kernel has for a whole machine, or for a whole user."""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Final

MOST_TERMINALS: Final = 256

# Numbers from <linux/mount.h> and the kernel's table of calls, where these are the same on every architecture.
_FSPICK, _FSCONFIG = 433, 431
_CLOSE_ON_EXEC, _EMPTY_PATH = 1, 8
_SET_STRING, _RECONFIGURE = 1, 7

_OPTIONS: Final = {"gid": "5", "mode": "620", "ptmxmode": "666"}
"""As runtimes mount it: the kernel forgets what is not given again."""

_QUEUES: Final = {"sigpending": resource.RLIMIT_SIGPENDING, "msgqueue": resource.RLIMIT_MSGQUEUE}

_libc = ctypes.CDLL(None, use_errno=True)


def queue_limits() -> dict[str, int]:
    """Limits on timers, queued signals and message queues, by the names that engines use for them.

    The kernel counts these for all processes of a user together, and all containers' root is the machine's. So they get
    half of what this process may have, together: the other half stays for the machine.
    """
    halves = {name: resource.getrlimit(kind)[0] // 2 for name, kind in _QUEUES.items()}
    return {name: half for name, half in halves.items() if half > 0}  # -1 is "no limit"


def bound_terminals(pid: int, most: int = MOST_TERMINALS) -> None:
    """Lets the container whose first process is `pid` open at most so many terminals at once.

    All terminals of a machine come out of one number (`kernel.pty.max`), but each container's file system of terminals
    takes a bound of its own. For a container in which no code of a sandbox's has run. `OSError`: it has none of its
    own, or the kernel is older than 5.2.
    """
    directory = os.open(f"/proc/{pid}/root/dev/pts", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(directory).st_dev == os.stat("/dev/pts").st_dev:
            raise OSError(f"process {pid} has the terminals of the machine")  # an image may have any links below /dev
        settings = _call(_FSPICK, directory, b"", _CLOSE_ON_EXEC | _EMPTY_PATH)
        try:
            for name, value in {**_OPTIONS, "max": str(most)}.items():
                _call(_FSCONFIG, settings, _SET_STRING, name.encode(), value.encode(), 0)
            _call(_FSCONFIG, settings, _RECONFIGURE, None, None, 0)
        finally:
            os.close(settings)
    finally:
        os.close(directory)


def _call(number: int, *arguments: int | bytes | None) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
