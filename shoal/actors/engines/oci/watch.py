"""Sees containers end, and the kernel kill something in them for memory, as it happens: by descriptors that the event
loop watches, so nothing is asked again and again."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.actors.engines.cgroups import Cgroup
from shoal.actors.engines.oci import processes
from shoal.actors.engines.oci.groups import Groups
from shoal.actors.engines.oci.records import ProcessRef

_log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)
_IN_MODIFY: Final = 2
_EVENT: Final = struct.Struct("=iIII")
_BUFFER: Final = 64 * 1024
_COUNT_TRIES, _COUNT_PAUSE_S = 50, 0.02


@dataclass(slots=True)
class _Watched:
    """`process`: its first one's pidfd; `memory`: an eventfd (version 1), or a watch of the inotify (version 2)."""

    first: ProcessRef
    process: int
    memory: int | None
    unified: bool


class Watch:
    """`exited(key, exit_code)` and `out_of_memory(key)` are called in the loop that made this. Threads may add and
    forget."""

    def __init__(
        self, groups: Groups, exited: Callable[[str, int | None], None], out_of_memory: Callable[[str], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._groups = groups
        self._exited = exited
        self._out_of_memory = out_of_memory
        self._watched: dict[str, _Watched] = {}
        self._keys: dict[int, str] = {}  # by watch of the inotify
        self._lock = threading.Lock()
        self._inotify: int | None = None
        self._closed = False

    def add(self, key: str, first: ProcessRef) -> None:
        """Watches a container from now on; one that has ended by now is told at once. Blocks."""
        try:
            process = os.pidfd_open(first.pid)
        except ProcessLookupError:
            self._in_loop(self._exited, key, None)
            return
        if processes.ref(first.pid).started != first.started:
            os.close(process)
            self._in_loop(self._exited, key, None)
            return
        group = self._groups.of(key)
        watched = _Watched(first, process, self._watch_memory(key, group), group.unified)
        with self._lock:
            self._watched[key] = watched
        self._in_loop(self._begin, key, watched)

    def forget(self, key: str) -> None:
        """Watches it no more. Idempotent."""
        with self._lock:
            watched = self._watched.pop(key, None)
        if watched is not None:
            self._in_loop(self._end, watched)

    def close(self) -> None:
        """Forgets all. Called in the loop. Idempotent."""
        self._closed = True
        with self._lock:
            watched = list(self._watched.values())
            self._watched.clear()
        for each in watched:
            self._end(each)
        if self._inotify is not None:
            self._loop.remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = None

    def _in_loop(self, call: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and this process about to end
            self._loop.call_soon_threadsafe(call, *arguments)

    def _begin(self, key: str, watched: _Watched) -> None:
        if self._watched.get(key) is not watched:
            return  # forgotten meanwhile: `_end` comes next
        self._loop.add_reader(watched.process, self._on_exit, key, watched)
        if watched.memory is not None and not watched.unified:
            self._loop.add_reader(watched.memory, self._on_eventfd, key, watched.memory)

    def _end(self, watched: _Watched) -> None:
        self._loop.remove_reader(watched.process)
        os.close(watched.process)
        if watched.memory is None:
            return
        if watched.unified:
            self._keys.pop(watched.memory, None)
            if self._inotify is not None:
                _libc.inotify_rm_watch(self._inotify, watched.memory)  # fails if the group is gone, with its watch
        else:
            self._loop.remove_reader(watched.memory)
            os.close(watched.memory)

    def _on_exit(self, key: str, watched: _Watched) -> None:
        if self._watched.get(key) is not watched:
            return  # forgotten meanwhile, by who ends it: `_end` comes next
        code = processes.exit_code(watched.first)
        self._check_memory(key, 0)
        self.forget(key)
        self._exited(key, code)

    def _check_memory(self, key: str, tries: int) -> None:
        """Tells of a kill, if there was any. Version 1 counts it only after it has told that memory is used up."""
        try:
            killed = self._groups.of(key).out_of_memory()
        except (OSError, ValueError):
            return
        if killed:
            self._out_of_memory(key)
        elif tries:
            self._loop.call_later(_COUNT_PAUSE_S, self._check_memory, key, tries - 1)

    def _on_eventfd(self, key: str, event: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(event, 8)
        self._check_memory(key, _COUNT_TRIES)

    def _on_inotify(self) -> None:
        assert self._inotify is not None
        try:
            data = os.read(self._inotify, _BUFFER)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(data):
            watch, _, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + length
            if watch in self._keys:
                self._check_memory(self._keys[watch], 0)

    def _watch_memory(self, key: str, group: Cgroup) -> int | None:
        try:
            return self._add_inotify(key, group.memory) if group.unified else _eventfd(group.memory)
        except OSError as error:  # it is still seen once the container ends
            _log.warning("kills for memory in container %s are not seen at once: %s", key, error)
            return None

    def _add_inotify(self, key: str, directory: Path) -> int:
        with self._lock:
            if self._inotify is None:
                self._inotify = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
                self._in_loop(self._loop.add_reader, self._inotify, self._on_inotify)
            file = os.fsencode(directory / "memory.events")
            watch = _checked(_libc.inotify_add_watch(self._inotify, file, _IN_MODIFY))
            self._keys[watch] = key
            return watch


def _eventfd(directory: Path) -> int:
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        control = os.open(directory / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            (directory / "cgroup.event_control").write_text(f"{event} {control}")
        finally:
            os.close(control)
    except OSError:
        os.close(event)
        raise
    return event


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
