"""The life of a sandbox as its users see it: its states, which may follow which, and the reasons of its end.

The controller tells more phases apart (`shoal.actors.controller.phase`); the state follows from the phase.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a sandbox is in its life."""

    PENDING = "pending"  # accepted, waiting for room
    STARTING = "starting"  # image, container, agent
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"  # disk kept
    TERMINATED = "terminated"
    FAILED = "failed"


class Reason(StrEnum):
    """Why a sandbox ended, or a persistent one stopped: a closed list."""

    COMPLETED = "completed"  # its own command ended
    TERMINATED = "terminated"  # somebody asked for it
    TIMEOUT = "timeout"
    IDLE_TIMEOUT = "idle_timeout"
    OUT_OF_MEMORY = "out_of_memory"
    OUT_OF_DISK = "out_of_disk"
    NODE_LOST = "node_lost"
    IMAGE_ERROR = "image_error"
    START_FAILED = "start_failed"
    EVICTED = "evicted"  # its container or agent was taken away from outside Shoal
    STOPPED = "stopped"  # somebody asked for its stop
    SUSPENDED = "suspended"  # somebody asked for that: it is stopped, and its memory is kept
    SHUTDOWN = "shutdown"  # it was stopped with its cluster


RETURNCODES: dict[str, int] = {
    Reason.COMPLETED: 255,  # its command's own code is not known, since code inside removed its traces
    Reason.TERMINATED: 137,
    Reason.TIMEOUT: 124,
    Reason.IDLE_TIMEOUT: 124,
    Reason.OUT_OF_MEMORY: 137,
    Reason.OUT_OF_DISK: 137,
    Reason.NODE_LOST: 137,
    Reason.IMAGE_ERROR: 125,
    Reason.START_FAILED: 125,
    Reason.EVICTED: 137,
    Reason.STOPPED: 137,
    Reason.SUSPENDED: 137,
    Reason.SHUTDOWN: 137,
}
"""The exit code of a sandbox that ended without one of a command of its own: 124 as by `timeout`, 137 (128 and SIGKILL)
where it was killed, 125 as by `docker run` where it never ran."""

FAILURES = frozenset({Reason.NODE_LOST, Reason.IMAGE_ERROR, Reason.START_FAILED, Reason.EVICTED})
"""Ends that are Shoal's or the machine's doing: the sandbox failed. All others: it was terminated."""

TERMINAL = frozenset({State.TERMINATED, State.FAILED})
LIVE = frozenset(State) - TERMINAL

MAY_BECOME: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.STARTING}) | TERMINAL,
    State.STARTING: frozenset({State.RUNNING, State.STOPPING, State.STOPPED}) | TERMINAL,
    State.RUNNING: frozenset({State.PAUSED, State.STOPPING, State.STOPPED}) | TERMINAL,
    State.PAUSED: frozenset({State.RUNNING, State.STOPPING}),
    State.STOPPING: frozenset({State.STOPPED}) | TERMINAL,
    State.STOPPED: frozenset({State.STARTING, State.STOPPING}) | TERMINAL,
    State.TERMINATED: frozenset(),
    State.FAILED: frozenset(),
}
"""Which states may follow a state."""
