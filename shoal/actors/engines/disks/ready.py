"""Disks that wait for containers: making one has the machine write and read its own disk, which takes a start longer
than all else that is done for it beside the runtime.

They are mounted nowhere, and each is held by a descriptor alone. So they go with this process, however it ends.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_log = logging.getLogger(__name__)

READY = 4
"""Disks of one size, as many as containers start at once. One takes an eighth of a MiB of the machine's memory."""

_SIZES = 2
"""Sizes of which some are ready: those that were asked for last."""

_SOON_S = 0.2
"""So long after a disk was taken others are made: the start that took it comes first."""


class ReadyDisks:
    """`make`: mounts a new disk of a size nowhere, and returns its descriptor; `OSError`, `SubprocessError`. Safe for
    several threads."""

    def __init__(self, make: Callable[[int], int]) -> None:
        self._make = make
        self._ready: OrderedDict[int, list[int]] = OrderedDict()  # by size, the one asked for last at the end
        self._filling: set[int] = set()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shoal-disks")
        self._over = threading.Event()

    def take(self, size: int) -> int | None:
        """The descriptor of a disk of that size, which is the caller's; None if none is ready. Others are made soon."""
        with self._lock:
            if self._over.is_set():
                return None
            disks = self._ready.setdefault(size, [])
            self._ready.move_to_end(size)
            taken = disks.pop() if disks else None
            surplus = self._ready.popitem(last=False)[1] if len(self._ready) > _SIZES else []
            if size not in self._filling:
                self._filling.add(size)
                self._thread.submit(self._fill, size)
        _close(surplus)
        return taken

    def close(self) -> None:
        """Lets all go. Idempotent."""
        self._over.set()
        self._thread.shutdown(wait=True)
        with self._lock:
            left = [disk for disks in self._ready.values() for disk in disks]
            self._ready.clear()
        _close(left)

    def _fill(self, size: int) -> None:
        self._over.wait(_SOON_S)
        try:
            while self._is_short(size):
                self._put(size, self._make(size))
        except (OSError, subprocess.SubprocessError) as error:  # a start that makes its own says more
            _log.warning("no disk is made ahead: %s", error)
        finally:
            with self._lock:
                self._filling.discard(size)

    def _is_short(self, size: int) -> bool:
        with self._lock:
            return not self._over.is_set() and size in self._ready and len(self._ready[size]) < READY

    def _put(self, size: int, disk: int) -> None:
        with self._lock:
            disks = self._ready.get(size)
            if disks is not None:
                disks.append(disk)
                return
        _close([disk])  # others were asked for meanwhile


def _close(disks: list[int]) -> None:
    for disk in disks:
        os.close(disk)
