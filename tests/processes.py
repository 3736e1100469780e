"""Finds the processes behind what the tests see, so that they can be killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import shoal


def agent_of(sandbox: shoal.Sandbox) -> int:
    """The pid, on this machine, of a sandbox's agent: the sandbox tells a word that nobody else knows."""
    word = f"SHOAL_TEST_{sandbox.id}"
    process = sandbox.exec("sleep", "97", env={word: "1"})
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and _has(entry / "environ", word.encode()):
                    return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            time.sleep(0.05)
        raise AssertionError(f"no process of {sandbox.id} on this machine")
    finally:
        process.kill()


def actor_pid(name: str) -> int:
    """The pid of a living named actor of Shoal's."""
    import ray._private.state as state

    for actor in state.actors().values():
        if actor["Name"] == name and actor["State"] == "ALIVE":
            return int(actor["Pid"])
    raise AssertionError(f"no living actor named {name}")


def actor_names(prefix: str) -> list[str]:
    """The living actors of Shoal's whose name begins so."""
    import ray._private.state as state

    return [a["Name"] for a in state.actors().values() if a["State"] == "ALIVE" and a["Name"].startswith(prefix)]


def command_line(pid: int) -> str:
    """What a process was started as, or calls itself; empty once it is gone, as one just listed may be."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def eventually(check: Callable[[], bool], within: float = 60.0, what: str = "it") -> None:
    """Waits until `check` is true. Long enough for Ray to start an actor anew on a slow and busy machine: only one that fails waits so long."""
    deadline = time.monotonic() + within
    while not check():
        assert time.monotonic() < deadline, f"{what} did not come true within {within} s"
        time.sleep(0.05)


def _has(file: Path, word: bytes) -> bool:
    try:
        return word in file.read_bytes()
    except OSError:
        return False


def kill_once_there(victim: Callable[[], int]) -> None:
    """As soon as it lives: it may be coming back from the last time, or be listed though it has gone."""

    def killed() -> bool:
        try:
            kill(victim())
        except (AssertionError, IndexError, ProcessLookupError):
            return False
        return True

    eventually(killed, what="a victim")


def kill_relay() -> None:
    """Kills the relay of the cluster under test."""

    def the_relay() -> int:
        pid = relay_pid()
        assert pid is not None
        return pid

    kill_once_there(the_relay)


def relay_pid() -> int | None:
    """The pid of the relay of the cluster under test, whose control socket is in its run directory; None while there is none."""
    run_dir = os.environ["SHOAL_RUN_DIR"]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and "\0relay\0" in command_line(int(entry.name)) and _holds(entry, run_dir):
            return int(entry.name)
    return None


def _holds(process: Path, run_dir: str) -> bool:
    """Whether a process listens at a socket below `run_dir`."""
    inodes = set()
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue  # just closed, as connections are all the time
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    lines = Path("/proc/net/unix").read_text().splitlines()
    return any(run_dir in line and line.split()[6] in inodes for line in lines)
