"""Finds the processes behind what the tests see, so that they can be killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

import shoal
from shoal.cluster.local import processes


def agent_of(sandbox: shoal.Sandbox) -> int:
    """The pid, on this machine, of a sandbox's agent: the sandbox tells a word that nobody else knows."""
    word = f"SHOAL_TEST_{sandbox.id}"
    process = sandbox.exec("sleep", "97", env={word: "1"})
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for each in psutil.process_iter():
                with suppress(psutil.Error, OSError):
                    if word in each.environ():
                        return each.ppid()
            time.sleep(0.05)
        raise AssertionError(f"no process of {sandbox.id} on this machine")
    finally:
        process.kill()


def actor_pid(name: str) -> int:
    """The pid of a named actor of Shoal's, once it lives: it may be on its way back from being killed."""
    import ray._private.state as state

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for actor in state.actors().values():
            if actor["Name"] == name and actor["State"] == "ALIVE":
                return int(actor["Pid"])
        time.sleep(0.05)
    raise AssertionError(f"no living actor named {name}")


def actor_names(prefix: str) -> list[str]:
    """The living actors of Shoal's whose name begins so."""
    import ray._private.state as state

    return [a["Name"] for a in state.actors().values() if a["State"] == "ALIVE" and a["Name"].startswith(prefix)]


def command_line(pid: int) -> str:
    """The arguments of a process, NUL between them; empty once it is gone."""
    return "\0".join(processes.command_line(pid))


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def eventually(check: Callable[[], bool], within: float = 60.0, what: str = "it") -> None:
    """Wait until `check` is true. The limit allows for Ray restarting an actor on a busy machine."""
    deadline = time.monotonic() + within
    while not check():
        assert time.monotonic() < deadline, f"{what} did not come true within {within} s"
        time.sleep(0.05)


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
    kill_once_there(lambda: _known(relay_pid()))


def kill_gateway() -> None:
    """Kills the gateway of the cluster under test."""
    kill_once_there(lambda: _known(gateway_pid()))


def relay_pid() -> int | None:
    """The pid of the relay of the cluster under test; None if there is none."""
    return next(iter(_programs("relay")), None)


def gateway_pid() -> int | None:
    """The pid of the gateway of the cluster under test; None if there is none.

    Of several the last one that was started.
    """
    return max(_programs("gateway"), default=None)


def _known(pid: int | None) -> int:
    assert pid is not None
    return pid


def _programs(mode: str) -> list[int]:
    """Pids of the Go program in that mode, whose control socket is in the run directory of the cluster under test."""
    found = processes.listening_below(Path(os.environ["SHOAL_RUN_DIR"]))
    return [process.pid for process in found if mode in processes.command_line(process.pid)]
