"""Looks at processes by pid and start time."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

from shoal.actors.engines.kernel_files import read_kernel
from shoal.actors.engines.oci.records import ProcessRef

_STATE, _FLAGS, _THREADS, _STARTED, _EXIT_CODE = 0, 6, 17, 19, 49
"""Fields of `/proc/<pid>/stat` after the name."""
_ENDED = "ZXx"
_EXITING = 0x4  # PF_EXITING
_KILLED = 1 << (signal.SIGKILL - 1)


def ref(pid: int) -> ProcessRef:
    """The process that has this pid now; `ProcessRef()` if none has."""
    fields = _stat(pid)
    return ProcessRef(pid, int(fields[_STARTED])) if fields else ProcessRef()


def alive(process: ProcessRef) -> bool:
    """Whether it runs: one that nobody has reaped yet does not."""
    fields = _stat(process.pid) if process.pid else []
    return bool(fields) and int(fields[_STARTED]) == process.started and not _has_ended(fields)


def exit_code(process: ProcessRef) -> int | None:
    """The exit code of one that has ended, 128 + n for a signal; None once it was reaped: the kernel has forgotten it
    then. Only root may read it."""
    fields = _stat(process.pid)
    if len(fields) <= _EXIT_CODE or int(fields[_STARTED]) != process.started or not _has_ended(fields):
        return None
    code = os.waitstatus_to_exitcode(int(fields[_EXIT_CODE]))
    return code if code >= 0 else 128 - code


def kill(process: ProcessRef, wait_s: float) -> None:
    """Kills it, and waits until it has ended, with its namespace if it is the first one there; at most so long.
    Idempotent."""
    try:
        descriptor = os.pidfd_open(process.pid) if process.pid else -1
    except ProcessLookupError:
        return
    if descriptor < 0:
        return
    try:
        if alive(process):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll(1000 * wait_s)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def is_ending(pid: int) -> bool:
    """Whether each thread of it has ended, or is ending: none executes anything more of its program."""
    return _all_threads(pid, _is_ending)


def on_its_way_out(pid: int) -> bool:
    """The same, or waits in the kernel with its kill before it."""
    return _all_threads(pid, lambda thread: _is_ending(thread) or _waits_for_its_end(thread))


def _all_threads(pid: int, true: Callable[[Path], bool]) -> bool:
    try:
        with os.scandir(f"/proc/{pid}/task") as threads:
            return all(_of_thread(Path(thread.path), true) for thread in threads)
    except (FileNotFoundError, ProcessLookupError):
        return True


def _of_thread(thread: Path, true: Callable[[Path], bool]) -> bool:
    try:
        return true(thread)
    except (FileNotFoundError, ProcessLookupError):
        return True  # it is gone


def _is_ending(thread: Path) -> bool:
    fields = _fields(thread)
    return fields[_STATE] in _ENDED or bool(int(fields[_FLAGS]) & _EXITING)


def _waits_for_its_end(thread: Path) -> bool:
    fields, status = _fields(thread), read_kernel(f"{thread}/status")
    pending = next(line for line in status.splitlines() if line.startswith("SigPnd:"))
    return fields[_STATE] == "D" and bool(int(pending.split()[1], 16) & _KILLED)


def end_calls(program: str, key: str) -> None:
    """Kills what still runs of a runtime's commands about a container, after whoever started them has died."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            if os.fsencode(key) in words and os.path.basename(words[0]) == os.fsencode(program):
                os.kill(int(entry.name), signal.SIGKILL)


def _has_ended(fields: list[str]) -> bool:
    """While a thread executes a program, the first one is dead for a moment, and its pid goes to the other."""
    return fields[_STATE] in _ENDED and int(fields[_THREADS]) <= 1


def _stat(pid: int) -> list[str]:
    try:
        return _fields(Path(f"/proc/{pid}"))
    except OSError:
        return []


def _fields(process: Path) -> list[str]:
    return read_kernel(f"{process}/stat").rpartition(")")[2].split()
