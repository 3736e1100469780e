"""The control groups of containers, by key: reading, freezing, killing and removing them. Version 1, version 2, and
both at once. Blocks: called in the engine's threads.

A container's group is `/shoal/<key>` in every hierarchy. The kernel is the only record: nothing here is remembered.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import time
from enum import Enum
from pathlib import Path
from typing import Final

from shoal.actors.engines.cgroup_parent import NAME
from shoal.actors.engines.cgroups import Cgroup, mount_points
from shoal.actors.engines.kernel_files import read_kernel
from shoal.actors.engines.oci import processes
from shoal.actors.engines.oci.records import ProcessRef
from shoal.model.errors import FailedPrecondition, Unavailable

_NEEDED: Final = ("cpu", "memory", "pids")
_FREEZE_S: Final = 10.0
_EMPTY_S: Final = 10.0
_STUCK_S: Final = 1.0
"""After so long, a process that was killed and has not ended is taken for one that waits in the kernel."""
_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.05
_LOOKS_UNTIL_THAWED: Final = 8
"""After so many looks, about 0.2 s, a group of version 1 that does not freeze is thawed for a moment."""


class Until(Enum):
    """How far the processes of a container must be before its kill is over."""

    GONE = "none is left"
    ENDED = "none is left but those that wait in the kernel, such as for a mount that stands still"
    ENDING = "none executes anything any more: the kernel takes down what is left of them"


class Groups:
    """`mountinfo`: the text of `/proc/self/mountinfo`. `FailedPrecondition` if the machine lacks what is needed."""

    def __init__(self, mountinfo: str) -> None:
        points = mount_points(mountinfo)
        self._tops = {name: Path(point) for name, (_, point) in points.items()}
        self._all = tuple(dict.fromkeys(f"{point}/{NAME}" for _, point in points.values()))
        self._unified = self._find_version(points)

    def _find_version(self, points: dict[str, tuple[str, str]]) -> bool:
        """Whether the limits are held by version 2."""
        outside = [point for root, point in points.values() if root != "/"]
        if outside:
            raise FailedPrecondition(f"the top of the control groups at {outside[0]} is not in sight", state="cgroups")
        if all(name in points for name in (*_NEEDED, "cpuacct", "freezer")):
            return False
        if "" not in points:
            raise FailedPrecondition(
                "no control groups are mounted; run: mount -t cgroup2 cgroup2 /sys/fs/cgroup", state="cgroups"
            )
        there = (self._tops[""] / "cgroup.controllers").read_text().split()
        lacking = [name for name in _NEEDED if name not in there]
        if lacking:
            raise FailedPrecondition(
                f"the control groups have no {', '.join(lacking)}; boot with cgroup_enable={lacking[0]}",
                state="cgroups",
            )
        return True

    @staticmethod
    def path(key: str) -> str:
        """As a runtime takes it."""
        return f"/{NAME}/{key}"

    def of(self, key: str) -> Cgroup:
        """Where the container's usage is read."""
        if self._unified:
            directory = self._directory("", key)
            return Cgroup(directory, directory, directory, unified=True)
        cpu, memory, pids = (self._directory(name, key) for name in ("cpuacct", "memory", "pids"))
        return Cgroup(cpu, memory, pids, unified=False)

    def frozen(self, key: str) -> bool:
        """Whether all its processes are frozen."""
        try:
            if self._unified:
                return "frozen 1" in read_kernel(self._directory("", key) / "cgroup.events")
            return read_kernel(self._directory("freezer", key) / "freezer.state").strip() == "FROZEN"
        except OSError:
            return False

    def freeze(self, key: str) -> None:
        """Freezes its processes and waits until they are. `OSError` if there is no group, `Unavailable` if some go on
        after ten seconds: then none is frozen."""
        deadline, pause = time.monotonic() + _FREEZE_S, _PAUSE_S
        self._switch(key, frozen=True)
        for look in itertools.count(1):
            if self.frozen(key):
                return
            if time.monotonic() > deadline:
                self._switch(key, frozen=False)
                raise Unavailable(f"container {key} cannot be frozen: some of its processes wait for a disk; try again")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            if not self._unified:
                if look % _LOOKS_UNTIL_THAWED == 0:  # one may wait for another that is frozen already
                    self._switch(key, frozen=False)
                    time.sleep(pause)
                self._switch(key, frozen=True)  # a process that was being made must be frozen, too

    def thaw(self, key: str) -> None:
        """Lets them run. `OSError` if there is no group."""
        self._switch(key, frozen=False)

    def _switch(self, key: str, *, frozen: bool) -> None:
        if self._unified:
            (self._directory("", key) / "cgroup.freeze").write_text("1" if frozen else "0")
        else:
            (self._directory("freezer", key) / "freezer.state").write_text("FROZEN" if frozen else "THAWED")

    def kill(self, key: str, first: ProcessRef, until: Until = Until.GONE) -> None:
        """Kills all its processes, frozen ones too, and waits. `first`: with which all others of its namespace end, if
        it is known. `Unavailable` if that takes more than ten seconds."""
        stuck = time.monotonic() + _STUCK_S
        if not self.frozen(key):
            processes.kill(first, {Until.GONE: _EMPTY_S, Until.ENDED: _STUCK_S, Until.ENDING: _PAUSE_S}[until])
        deadline, pause = time.monotonic() + _EMPTY_S, _PAUSE_S
        while left := self._processes(key):
            if until is Until.ENDING and all(map(processes.is_ending, left)) and {*self._processes(key)} <= {*left}:
                return  # nor has one left a child in its last moment
            if until is not Until.GONE and time.monotonic() > stuck and all(map(processes.on_its_way_out, left)):
                return
            if time.monotonic() > deadline:
                raise Unavailable(f"processes of container {key} do not end after being killed: {left[:5]}; try again")
            self._kill(key, left)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _kill(self, key: str, pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                process = os.pidfd_open(pid)
                try:
                    if f"/{NAME}/{key}\n" in Path(f"/proc/{pid}/cgroup").read_text():  # else the pid is another's now
                        signal.pidfd_send_signal(process, signal.SIGKILL)
                except FileNotFoundError:
                    pass
                finally:
                    os.close(process)
        with contextlib.suppress(OSError):
            self.thaw(key)  # frozen by version 1 they would not see the signal

    def _processes(self, key: str) -> list[int]:
        found: set[int] = set()
        for top in self._all:
            with contextlib.suppress(OSError):
                found.update(map(int, read_kernel(f"{top}/{key}/cgroup.procs").split()))
        return sorted(found - {0})

    def remove(self, key: str) -> None:
        """Removes its groups, in which nothing runs any more. Idempotent; `OSError`."""
        for top in self._all:
            _remove(f"{top}/{key}")

    def _directory(self, name: str, key: str) -> Path:
        return self._tops[name] / NAME / key


def _remove(directory: str) -> None:
    deadline = time.monotonic() + _EMPTY_S
    while True:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            # The last process is just leaving.
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_S)
        else:
            return
