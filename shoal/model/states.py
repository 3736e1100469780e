"""The life of a sandbox: its states, the reasons of its end, and which transitions are legal.

Transitions are data. Deciding is here and pure; doing is the sandbox actor's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from shoal.model.errors import FailedPrecondition


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
    """Why a sandbox ended: a closed list."""

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


class Event(StrEnum):
    """What may happen to a sandbox."""

    PLACE = "place"
    READY = "ready"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    KEEP = "keep"
    REMOVE = "remove"
    FAIL = "fail"


TERMINAL = frozenset({State.TERMINATED, State.FAILED})
LIVE = frozenset(State) - TERMINAL

TRANSITIONS: dict[tuple[State, Event], tuple[State, str]] = {
    (State.PENDING, Event.PLACE): (State.STARTING, "a slot took it"),
    (State.PENDING, Event.REMOVE): (State.TERMINATED, "given up before it found room"),
    (State.PENDING, Event.FAIL): (State.FAILED, "no room, or the request cannot be met"),
    (State.STARTING, Event.READY): (State.RUNNING, "the agent answered and the command, if any, started"),
    (State.STARTING, Event.REMOVE): (State.TERMINATED, "terminated while starting"),
    (State.STARTING, Event.FAIL): (State.FAILED, "image, container, agent or command did not start"),
    (State.RUNNING, Event.STOP): (State.STOPPING, "its command ended, a limit was reached, or somebody asked"),
    (State.RUNNING, Event.PAUSE): (State.PAUSED, "frozen on request"),
    (State.RUNNING, Event.FAIL): (State.FAILED, "its container, agent or node was lost"),
    (State.PAUSED, Event.RESUME): (State.RUNNING, "thawed on request"),
    (State.PAUSED, Event.STOP): (State.STOPPING, "a limit was reached, or somebody asked"),
    (State.STOPPING, Event.KEEP): (State.STOPPED, "persistent: its disk stays"),
    (State.STOPPING, Event.REMOVE): (State.TERMINATED, "its container is gone"),
    (State.STOPPED, Event.PLACE): (State.STARTING, "started again"),
    (State.STOPPED, Event.REMOVE): (State.TERMINATED, "its disk was given up"),
}


def next_state(state: State, event: Event) -> State:
    """The state that `event` leads to; raises `FailedPrecondition` where it is illegal."""
    try:
        return TRANSITIONS[state, event][0]
    except KeyError:
        legal = sorted(e.value for s, e in TRANSITIONS if s is state)
        raise FailedPrecondition(
            f"{event.value} is not possible in state {state.value}; possible: {', '.join(legal) or 'nothing, it has ended'}",
            state=state.value,
        ) from None


@dataclass(slots=True)
class Lifecycle:
    """One sandbox's state and how it got there. `history` holds (unix seconds, event, state reached), newest last."""

    state: State = State.PENDING
    history: list[tuple[float, Event, State]] = field(default_factory=list)

    def apply(self, event: Event, now: float) -> State:
        """Makes the transition; an illegal one raises `FailedPrecondition` with the history in its message."""
        try:
            self.state = next_state(self.state, event)
        except FailedPrecondition as error:
            path = " → ".join(f"{e.value}:{s.value}" for _, e, s in self.history) or "just created"
            raise FailedPrecondition(f"{error.message} (history: {path})", state=self.state.value) from None
        self.history.append((now, event, self.state))
        return self.state

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL
