"""The processes of a cluster on this machine: told apart from all others, and stopped.

Ray's own `ray stop` ends every Ray on the machine. Ours are told apart by what they inherit: the mark in their environment, and, as
some programs overwrite theirs when they set their title, the descriptor that everything below the raylet holds on its log.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from shoal.model.cluster_file import ProcessRef

MARK = "SHOAL_CLUSTER_PROCESS"
"""Environment variable that carries the cluster's id to all that `shoal up` starts for Ray, and to their children."""


def environment() -> dict[str, str]:
    """This process's environment for a child of ours; one that runs from a source tree finds that tree from wherever it starts."""
    root = Path(__file__).parents[2]
    inherited = dict(os.environ)
    if root.name not in ("site-packages", "dist-packages"):
        inherited["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), inherited.get("PYTHONPATH"))))
    return inherited


def ref(pid: int) -> ProcessRef | None:
    """The process as it is now; None where there is none, or only its exit status is left to collect."""
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    state, *rest = data.rpartition(b")")[2].split()  # the name before it may hold anything
    return None if state in (b"Z", b"X") else ProcessRef(pid, int(rest[18]))


def alive(process: ProcessRef) -> bool:
    return ref(process.pid) == process


def of_cluster(cluster: str, temp_dir: Path) -> list[ProcessRef]:
    """Everything of that cluster's Ray: daemons, workers and what workers started. Never this process nor those it lives under.

    Nor one in a container, whatever it wears: a sandbox that bore such processes faster than they end would keep `stop` busy for ever."""
    mark, logs = f"{MARK}={cluster}".encode(), f"{temp_dir}/session_"
    spared, here = _ancestors(), _namespace("self")
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) in spared:
            continue
        process = ref(int(entry.name))
        if process is None or not (_marked(process.pid, mark) or _writes_raylet_log(process.pid, logs)):
            continue
        if _namespace(entry.name) == here:
            found.append(process)
    return found


def holding(inodes: set[str]) -> list[ProcessRef]:
    """The processes that hold one of these sockets open."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and any(target in wanted for _, target in _descriptors(int(entry.name))):
            process = ref(int(entry.name))
            if process is not None:
                found.append(process)
    return found


def stop(processes: Iterable[ProcessRef], *, grace_s: float) -> None:
    """Asks them to end, kills those that have not after `grace_s` seconds, and returns once all are gone."""
    left = [p for p in processes if _signal(p, signal.SIGTERM)]
    left = _await_end(left, grace_s)
    left = _await_end([p for p in left if _signal(p, signal.SIGKILL)], 10.0)
    if left:
        raise TimeoutError(f"processes {[p.pid for p in left]} do not end; they hang in the kernel")


def _signal(process: ProcessRef, number: int) -> bool:
    if not alive(process):
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def _await_end(processes: list[ProcessRef], seconds: float) -> list[ProcessRef]:
    """Those that still live after at most `seconds`."""
    deadline = time.monotonic() + seconds
    while processes and time.monotonic() < deadline:
        for process in processes:
            _reap(process.pid)
        processes = [p for p in processes if alive(p)]
        if processes:
            time.sleep(0.02)
    return processes


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # somebody else's child


def _namespace(pid: str) -> str | None:
    """By which pids are counted where that process lives."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:  # gone, or another user's
        return None


def _marked(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or another user's
        return False


def _writes_raylet_log(pid: int, prefix: str) -> bool:
    """Whether it holds `<temp_dir>/session_…/logs/raylet.*` open for writing. A driver does not, nor does somebody reading it."""
    for link, target in _descriptors(pid):
        if target.startswith(prefix) and "/logs/raylet." in target:
            try:
                if os.lstat(link).st_mode & stat.S_IWUSR:
                    return True
            except OSError:
                continue  # just closed
    return False


def _descriptors(pid: int) -> Iterator[tuple[str, str]]:
    """(link, what it points at) of each open descriptor."""
    directory = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(directory)
    except OSError:  # gone, or another user's
        return
    for number in numbers:
        link = f"{directory}/{number}"
        try:
            yield link, os.readlink(link)
        except OSError:
            continue


def _ancestors() -> set[int]:
    spared = {1}
    pid = os.getpid()
    while pid > 1:
        spared.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except OSError:
            break
    return spared
