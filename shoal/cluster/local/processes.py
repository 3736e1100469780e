"""The processes of a cluster on this machine: finding them and stopping them.

`ray stop` ends every Ray on the machine. Ours are recognised by what they inherit: the mark in their environment and,
since some programs overwrite it when they set their title, the open descriptor of the raylet's log.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from shoal.model.cluster_file import ProcessRef

MARK = "SHOAL_CLUSTER_PROCESS"
"""Environment variable with the cluster's id, which every process of the cluster's Ray inherits."""


def environment() -> dict[str, str]:
    """This process's environment for a child, with the source tree on PYTHONPATH if we run from one."""
    root = Path(__file__).parents[2]
    inherited = dict(os.environ)
    if root.name not in ("site-packages", "dist-packages"):
        inherited["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), inherited.get("PYTHONPATH"))))
    return inherited


def ref(pid: int) -> ProcessRef | None:
    """The process with this pid; None if there is none, or only a zombie."""
    # Not by psutil: its `create_time` moves when the clock is set, and refs are kept on disk.
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    state, *rest = data.rpartition(b")")[2].split()  # the name before it may hold anything
    return None if state in (b"Z", b"X") else ProcessRef(pid, int(rest[18]))


def alive(process: ProcessRef) -> bool:
    return ref(process.pid) == process


def of_cluster(cluster: str, temp_dir: Path) -> list[ProcessRef]:
    """Every process of that cluster's Ray: daemons, workers and what workers started; never this process or its
    parents.

    Processes in containers are left out: code in a sandbox could wear the mark and keep `stop` busy for ever.
    """
    logs = f"{temp_dir}/session_"
    spared = {1, os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    here = _namespace("self")
    found = []
    for pid in psutil.pids():
        if pid in spared:
            continue
        process = ref(pid)
        if process is None or not (_mark(pid) == cluster or _writes_raylet_log(pid, logs)):
            continue
        if _namespace(str(pid)) == here:
            found.append(process)
    return found


def listening_below(directory: Path) -> list[ProcessRef]:
    """The processes that hold a unix socket whose path is below `directory`."""
    sockets = psutil.net_connections(kind="unix")
    pids = {each.pid for each in sockets if each.pid is not None and str(each.laddr).startswith(f"{directory}/")}
    return [process for process in map(ref, sorted(pids)) if process is not None]


def command_line(pid: int) -> list[str]:
    """The arguments that a process was started with, or the title it has set; empty if it is gone."""
    try:
        return list(psutil.Process(pid).cmdline())
    except psutil.Error:
        return []


def descendants(pid: int) -> list[ProcessRef]:
    """The children of a process and theirs, parents first."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    return [process for process in (ref(child.pid) for child in children) if process is not None]


def stop(processes: Iterable[ProcessRef], *, grace_s: float) -> None:
    """Sends SIGTERM, SIGKILL after `grace_s` seconds, and returns once all processes are gone."""
    # Not `psutil.wait_procs`: it waits for a zombie until its parent reaps it.
    left = [p for p in processes if _signal(p, signal.SIGTERM)]
    left = _await_end(left, grace_s)
    left = _await_end([p for p in left if _signal(p, signal.SIGKILL)], 10.0)
    if left:
        raise TimeoutError(f"processes {[p.pid for p in left]} do not end: they hang in the kernel")


def _signal(process: ProcessRef, number: int) -> bool:
    if not alive(process):
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def _await_end(processes: list[ProcessRef], seconds: float) -> list[ProcessRef]:
    """Those that are still alive after `seconds`."""
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
        pass  # not our child


def _namespace(pid: str) -> str | None:
    """The PID namespace of a process."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:  # gone, or another user's
        return None


def _mark(pid: int) -> str | None:
    try:
        environment: dict[str, str] = psutil.Process(pid).environ()
    except (psutil.Error, OSError):  # gone, or another user's
        return None
    return environment.get(MARK)


def _writes_raylet_log(pid: int, prefix: str) -> bool:
    """Whether it holds `<temp_dir>/session_…/logs/raylet.*` open for writing, unlike drivers and readers."""
    # Not by psutil: its `open_files` leaves out files that have been deleted.
    directory = f"/proc/{pid}/fd"
    try:
        links = [f"{directory}/{number}" for number in os.listdir(directory)]
    except OSError:  # gone, or another user's
        return False
    for link in links:
        try:
            target = os.readlink(link)
            if target.startswith(prefix) and "/logs/raylet." in target and os.lstat(link).st_mode & stat.S_IWUSR:
                return True
        except OSError:
            continue  # just closed
    return False
