"""The phases of a sandbox's life in the controller, and what is done on the way from one to the next.

    accepting ──► queued ──► placing ──► starting ──► confirming ──► running ◄──► adopting
        │                       ▲            │             ▲            │
        ▼                       │            ▼             └── after ───┤
    rejected                retrying ◄── cleaning             adopting  ▼
                                                                     stopping, removing ──► ended ──► closing ──► closed

A persistent one goes round, and leaves only where its end is asked for:

    running ──► halting, halting_alone ──► halted ──► vacating ──► stopped
       ▲                                     ▲                        │
       └── confirming ◄── restarting ◄── waking_placed ◄── waking ◄───┘

Deciding is pure and here: `step` looks up an edge of the table. `supervisor.py` does what it says. The public state
follows from the phase.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum

from shoal.model.errors import FailedPrecondition
from shoal.model.states import State


class Phase(StrEnum):
    """What the controller is doing with a sandbox. In each phase but `aborting` and `stopped` one activity is under
    way: see `ACTIVITY`."""

    ACCEPTING = "accepting"  # its acceptance is being written
    ACCEPTING_PLACED = "accepting_placed"  # the same, together with the idle slot that will start it
    REJECTED = "rejected"  # the store refused it: there is no such sandbox
    QUEUED = "queued"  # waits for a slot; nothing of it exists anywhere
    PLACING = "placing"  # the slot that will start it is being written
    STARTING = "starting"  # its slot was told to start it
    CLEANING = "cleaning"  # its slot died while it started: the container that it may have left is being removed
    RETRYING = "retrying"  # waits for another slot
    ABORTING = "aborting"  # its end was asked for; the write, start or removal that is under way is seen through first
    CONFIRMING = "confirming"  # it runs: that, or the slot that adopted it, is being written
    RUNNING = "running"  # its slot holds it, and will tell of its end
    ADOPTING = "adopting"  # its slot died: another adopts its container
    STOPPING = "stopping"  # its end was asked for: its slot ends it
    REMOVING = "removing"  # its end was asked for, and no slot holds it: its node removes its container
    HALTING = "halting"  # its stop was asked for: its slot stops it
    HALTING_ALONE = "halting_alone"  # it shall stop, and no slot holds it: its node stops its container
    HALTED = "halted"  # it has stopped: that is being written
    VACATING = "vacating"  # its stop is on record, or will be as soon as the store is back; its slot is being wiped
    STOPPED = "stopped"  # nothing of it runs
    WAKING = "waking"  # its start was asked for: it waits for a slot on its machine
    WAKING_PLACED = "waking_placed"  # the slot that will start it again is being written
    RESTARTING = "restarting"  # its slot was told to start it again
    ENDED = "ended"  # its end is known and being written
    CLOSING = "closing"  # its end is on record, or will be as soon as the store is back; its slot is being wiped
    CLOSED = "closed"  # nothing is left to do


class Event(StrEnum):
    """What may happen to a sandbox."""

    WRITTEN = "written"  # the write that was under way is done
    REFUSED = "refused"  # the store wrote nothing
    UNCLEAR_WRITE = "unclear_write"  # nobody knows whether the store wrote it
    SLOT_FOUND = "slot_found"
    STARTED = "started"
    FAILED = "failed"  # no slot was found, or its start failed and left nothing
    UNCLEAR_START = "unclear_start"  # its start failed and may have left a container
    SLOT_LOST = "slot_lost"
    SLOT_OCCUPIED = "slot_occupied"  # the slot holds another sandbox
    REMOVED = "removed"  # its container, if it had one, is gone
    ADOPTED = "adopted"
    ENDED = "ended"
    END_REQUESTED = "end_requested"  # somebody asked for its end, and that is on record
    GIVEN_UP = "given_up"  # its start was cut short by a restart of the controller, and nobody wants it any more
    NODE_LOST = "node_lost"
    HALTED = "halted"  # it has stopped, and its disk is kept
    UNHELD = "unheld"  # its slot does not hold it: its start failed there, or somebody else wiped it
    NOT_ADOPTED = "not_adopted"
    STOP_REQUESTED = "stop_requested"  # somebody asked for its stop, and that is on record
    START_REQUESTED = "start_requested"
    MACHINE_LOST = "machine_lost"  # and its disk with it, until it comes back
    CLEARED = "cleared"  # its slot is wiped


class Action(StrEnum):
    """What is to be done. Activities take time and end in an event; the others are done at once."""

    FREE_SLOT = "free_slot"  # the slot takes the next sandbox
    DISCARD_SLOT = "discard_slot"  # the slot is not trusted any more
    FORGET_SLOT = "forget_slot"  # the slot is dead
    REMOVE_LATER = "remove_later"  # a container may be left: it is removed once the end is written
    COUNT_ACCEPTANCE = "count_acceptance"
    NOTE_START = "note_start"  # it is counted; a persistent one has its disk where it runs
    RETRACT = "retract"  # the registry forgets it
    NOTE_END = "note_end"  # it ends in memory
    NOTE_STOP = "note_stop"  # it stops in memory, and uses no CPU and memory any more
    NOTE_WAKE = "note_wake"  # it uses them again

    WRITE_ACCEPTANCE = "write_acceptance"
    FIND_SLOT = "find_slot"
    WRITE_SLOT = "write_slot"
    START = "start"
    REMOVE = "remove"
    WRITE_RUNNING = "write_running"
    WATCH = "watch"
    ADOPT = "adopt"
    STOP = "stop"
    WRITE_END = "write_end"
    CLEAR = "clear"
    HALT = "halt"
    HALT_THERE = "halt_there"
    WRITE_STOP = "write_stop"
    FIND_OWN_SLOT = "find_own_slot"
    RESTART = "restart"


ACTIVITY: dict[Phase, Action] = {
    Phase.ACCEPTING: Action.WRITE_ACCEPTANCE,
    Phase.ACCEPTING_PLACED: Action.WRITE_ACCEPTANCE,
    Phase.QUEUED: Action.FIND_SLOT,
    Phase.PLACING: Action.WRITE_SLOT,
    Phase.STARTING: Action.START,
    Phase.CLEANING: Action.REMOVE,
    Phase.RETRYING: Action.FIND_SLOT,
    Phase.CONFIRMING: Action.WRITE_RUNNING,
    Phase.RUNNING: Action.WATCH,
    Phase.ADOPTING: Action.ADOPT,
    Phase.STOPPING: Action.STOP,
    Phase.REMOVING: Action.REMOVE,
    Phase.ENDED: Action.WRITE_END,
    Phase.CLOSING: Action.CLEAR,
    Phase.HALTING: Action.HALT,
    Phase.HALTING_ALONE: Action.HALT_THERE,
    Phase.HALTED: Action.WRITE_STOP,
    Phase.VACATING: Action.CLEAR,
    Phase.WAKING: Action.FIND_OWN_SLOT,
    Phase.WAKING_PLACED: Action.WRITE_SLOT,
    Phase.RESTARTING: Action.RESTART,
}
"""What is under way in a phase. `aborting` has no activity of its own: that of the phase before it goes on. In
`stopped` nothing is under way."""

STATE: dict[Phase, State] = {
    Phase.ACCEPTING: State.PENDING,
    Phase.ACCEPTING_PLACED: State.STARTING,
    Phase.REJECTED: State.FAILED,
    Phase.QUEUED: State.PENDING,
    Phase.PLACING: State.STARTING,
    Phase.STARTING: State.STARTING,
    Phase.CLEANING: State.STARTING,
    Phase.RETRYING: State.STARTING,
    Phase.ABORTING: State.STARTING,
    Phase.CONFIRMING: State.RUNNING,
    Phase.RUNNING: State.RUNNING,
    Phase.ADOPTING: State.RUNNING,
    Phase.STOPPING: State.STOPPING,
    Phase.REMOVING: State.STOPPING,
    Phase.HALTING: State.STOPPING,
    Phase.HALTING_ALONE: State.STOPPING,
    Phase.HALTED: State.STOPPED,
    Phase.VACATING: State.STOPPED,
    Phase.STOPPED: State.STOPPED,
    Phase.WAKING: State.STARTING,
    Phase.WAKING_PLACED: State.STARTING,
    Phase.RESTARTING: State.STARTING,
}
"""The public state in each phase before the end. After it the reason of the end decides: see `SandboxRecord.state`."""

ACCEPTED = frozenset(Phase) - {Phase.ACCEPTING, Phase.ACCEPTING_PLACED}
"""It is known whether the sandbox is on record."""

ENDED = frozenset({Phase.ENDED, Phase.CLOSING, Phase.CLOSED})
SETTLED = frozenset({Phase.CLOSING, Phase.CLOSED, Phase.REJECTED})
"""Its end is on record, or will be as soon as the store is back."""

RESTING = frozenset({Phase.HALTED, Phase.VACATING, Phase.STOPPED})
"""Nothing of it runs, but its disk is kept."""

LOSABLE = frozenset(
    {
        Phase.CONFIRMING,
        Phase.RUNNING,
        Phase.ADOPTING,
        Phase.HALTING,
        Phase.HALTING_ALONE,
        Phase.WAKING,
        Phase.WAKING_PLACED,
        Phase.RESTARTING,
    }
)
"""A persistent sandbox in one of these stops with its machine."""

LAUNCHED = (
    frozenset({Phase.RUNNING, Phase.ADOPTING, Phase.STOPPING, Phase.REMOVING})
    | RESTING
    | (LOSABLE - {Phase.CONFIRMING})
    | SETTLED
)
"""What came of its first start is known, and written."""

UP_OR_LAUNCHED = LAUNCHED | {Phase.CONFIRMING}
"""The same, or it is being written. Until that is done, the next controller learns it from its slot, which is on record
already: so its creator need not wait for the disk."""


@dataclass(frozen=True, slots=True)
class Edge:
    """Where an event leads, what is done at once on the way, and why."""

    to: Phase
    reason: str
    actions: tuple[Action, ...] = ()


_HISTORY = 31

_Rows = list[tuple[tuple[Phase, ...], tuple[Event, ...], Edge]]

_ACCEPTING = (Phase.ACCEPTING, Phase.ACCEPTING_PLACED)
_WAITING = (Phase.QUEUED, Phase.RETRYING)
_FREE = (Action.FREE_SLOT, Action.NOTE_END)
_DISCARD = (Action.DISCARD_SLOT, Action.NOTE_END)
_UNCLEAR = (Action.DISCARD_SLOT, Action.REMOVE_LATER, Action.NOTE_END)
_NOT_WRITTEN = (Event.REFUSED, Event.UNCLEAR_WRITE)
_FREE_STOPPED = (Action.FREE_SLOT, Action.NOTE_STOP)

_START: _Rows = [
    (
        (Phase.ACCEPTING,),
        (Event.WRITTEN,),
        Edge(Phase.QUEUED, "accepted; no slot was idle", (Action.COUNT_ACCEPTANCE,)),
    ),
    (
        (Phase.ACCEPTING_PLACED,),
        (Event.WRITTEN,),
        Edge(Phase.STARTING, "accepted, and an idle slot takes it", (Action.COUNT_ACCEPTANCE,)),
    ),
    (
        _ACCEPTING,
        (Event.REFUSED,),
        Edge(Phase.REJECTED, "the store wrote nothing: it never was", (Action.FREE_SLOT, Action.RETRACT)),
    ),
    (
        _ACCEPTING,
        (Event.UNCLEAR_WRITE,),
        Edge(Phase.ENDED, "the next controller would bring it up, so its end is written after it", _FREE),
    ),
    (_WAITING, (Event.SLOT_FOUND,), Edge(Phase.PLACING, "a slot is free")),
    (_WAITING, (Event.FAILED,), Edge(Phase.ENDED, "no slot within its deadline", (Action.NOTE_END,))),
    ((Phase.PLACING,), (Event.WRITTEN,), Edge(Phase.STARTING, "its slot is on record")),
    ((Phase.PLACING,), _NOT_WRITTEN, Edge(Phase.ENDED, "its slot could not be put on record", _FREE)),
    (
        (Phase.STARTING,),
        (Event.STARTED,),
        Edge(Phase.CONFIRMING, "the agent answered and the command, if any, started", (Action.NOTE_START,)),
    ),
    ((Phase.STARTING,), (Event.FAILED,), Edge(Phase.ENDED, "its start failed and left nothing", _FREE)),
    ((Phase.STARTING,), (Event.UNCLEAR_START,), Edge(Phase.ENDED, "nobody knows what its start left", _UNCLEAR)),
    ((Phase.STARTING,), (Event.SLOT_LOST,), Edge(Phase.CLEANING, "its slot died", (Action.DISCARD_SLOT,))),
    (
        (Phase.STARTING,),
        (Event.SLOT_OCCUPIED,),
        Edge(Phase.RETRYING, "its slot holds another sandbox, and would refuse the next, too", (Action.DISCARD_SLOT,)),
    ),
    ((Phase.CLEANING,), (Event.REMOVED,), Edge(Phase.RETRYING, "nothing is left of the start that its slot died of")),
    ((Phase.CONFIRMING,), (Event.WRITTEN,), Edge(Phase.RUNNING, "it is on record where it runs")),
]

_RUN: _Rows = [
    (
        (Phase.RUNNING, Phase.STOPPING, Phase.HALTING),
        (Event.ENDED,),
        Edge(Phase.ENDED, "its slot tells its end", (Action.NOTE_END,)),
    ),
    ((Phase.RUNNING,), (Event.SLOT_LOST,), Edge(Phase.ADOPTING, "its slot died", (Action.FORGET_SLOT,))),
    ((Phase.ADOPTING,), (Event.ADOPTED,), Edge(Phase.CONFIRMING, "another slot holds it")),
    ((Phase.ADOPTING,), (Event.ENDED,), Edge(Phase.ENDED, "no slot could adopt it in time", (Action.NOTE_END,))),
    (
        (Phase.CONFIRMING, Phase.RUNNING, Phase.ADOPTING, Phase.STOPPING, Phase.REMOVING),
        (Event.NODE_LOST,),
        Edge(Phase.ENDED, "its machine is gone", (Action.FORGET_SLOT, Action.NOTE_END)),
    ),
    ((Phase.ENDED,), (Event.WRITTEN,), Edge(Phase.CLOSING, "its end is on record, or will be")),
    ((Phase.CLOSING,), (Event.CLEARED,), Edge(Phase.CLOSED, "its slot is free")),
]

_STOP: _Rows = [
    (_WAITING, (Event.END_REQUESTED,), Edge(Phase.ENDED, "nothing of it exists yet", (Action.NOTE_END,))),
    (
        (Phase.PLACING, Phase.STARTING, Phase.CLEANING),
        (Event.END_REQUESTED,),
        Edge(Phase.ABORTING, "what is under way may leave a container, and is seen through"),
    ),
    ((Phase.ABORTING,), (Event.WRITTEN, Event.FAILED), Edge(Phase.ENDED, "nothing of it was started", _FREE)),
    ((Phase.ABORTING,), _NOT_WRITTEN, Edge(Phase.ENDED, "nothing of it was started", _FREE)),
    (
        (Phase.ABORTING,),
        (Event.STARTED,),
        Edge(Phase.STOPPING, "it runs by now: its slot ends it", (Action.NOTE_START,)),
    ),
    ((Phase.ABORTING,), (Event.UNCLEAR_START,), Edge(Phase.ENDED, "nobody knows what its start left", _UNCLEAR)),
    ((Phase.ABORTING,), (Event.SLOT_LOST,), Edge(Phase.REMOVING, "its slot died", (Action.DISCARD_SLOT,))),
    ((Phase.ABORTING,), (Event.SLOT_OCCUPIED,), Edge(Phase.ENDED, "nothing of it was started", _DISCARD)),
    ((Phase.ABORTING,), (Event.REMOVED,), Edge(Phase.ENDED, "nothing is left of it", (Action.NOTE_END,))),
    (
        (Phase.CONFIRMING, Phase.RUNNING),
        (Event.END_REQUESTED,),
        Edge(Phase.STOPPING, "somebody asked: its slot ends it"),
    ),
    (
        (Phase.ADOPTING,),
        (Event.END_REQUESTED,),
        Edge(Phase.REMOVING, "somebody asked, and a slot may be long in coming"),
    ),
    ((Phase.STOPPING,), (Event.SLOT_LOST,), Edge(Phase.REMOVING, "its slot died", (Action.FORGET_SLOT,))),
    ((Phase.REMOVING,), (Event.REMOVED,), Edge(Phase.ENDED, "its container is gone", (Action.NOTE_END,))),
    ((Phase.QUEUED,), (Event.GIVEN_UP,), Edge(Phase.ENDED, "nothing of it exists yet", (Action.NOTE_END,))),
    (
        (Phase.STARTING, Phase.CLEANING),
        (Event.GIVEN_UP,),
        Edge(Phase.REMOVING, "its start may have left a container", (Action.DISCARD_SLOT,)),
    ),
    *(
        ((phase,), (Event.END_REQUESTED,), Edge(phase, "its end is under way"))
        for phase in (Phase.ABORTING, Phase.STOPPING, Phase.REMOVING, Phase.ENDED, Phase.CLOSING)
    ),
]

_HALT: _Rows = [
    (
        (Phase.RUNNING,),
        (Event.HALTED,),
        Edge(Phase.HALTED, "it stopped where others end: its slot tells why", (Action.NOTE_STOP,)),
    ),
    (
        (Phase.CONFIRMING, Phase.RUNNING, Phase.RESTARTING),
        (Event.STOP_REQUESTED,),
        Edge(Phase.HALTING, "somebody asked: its slot stops it, after a start that is under way"),
    ),
    (
        (Phase.ADOPTING,),
        (Event.STOP_REQUESTED,),
        Edge(Phase.HALTING_ALONE, "somebody asked, and a slot may be long in coming"),
    ),
    ((Phase.ADOPTING,), (Event.NOT_ADOPTED,), Edge(Phase.HALTING_ALONE, "nobody would notice its end")),
    ((Phase.HALTING, Phase.HALTING_ALONE), (Event.HALTED,), Edge(Phase.HALTED, "it has stopped", (Action.NOTE_STOP,))),
    ((Phase.HALTING,), (Event.SLOT_LOST,), Edge(Phase.HALTING_ALONE, "its slot died", (Action.FORGET_SLOT,))),
    (
        (Phase.RUNNING, Phase.HALTING),
        (Event.UNHELD,),
        Edge(Phase.HALTING_ALONE, "its slot cannot tell how it is", (Action.DISCARD_SLOT,)),
    ),
    ((Phase.HALTED,), (Event.WRITTEN,), Edge(Phase.VACATING, "its stop is on record, or will be")),
    ((Phase.VACATING,), (Event.CLEARED,), Edge(Phase.STOPPED, "its slot is free")),
    (
        tuple(sorted(LOSABLE)),
        (Event.MACHINE_LOST,),
        Edge(Phase.HALTED, "its machine is gone, and may come back", (Action.FORGET_SLOT, Action.NOTE_STOP)),
    ),
    *(
        ((phase,), (Event.STOP_REQUESTED,), Edge(phase, "it stops already"))
        for phase in (Phase.HALTING, Phase.HALTING_ALONE, Phase.HALTED, Phase.VACATING, Phase.STOPPING, Phase.REMOVING)
    ),
    (
        (Phase.STOPPED,),
        (Event.STOP_REQUESTED,),
        Edge(Phase.HALTED, "it was to start again by itself, and shall not", (Action.NOTE_STOP,)),
    ),
]

_WAKE: _Rows = [
    ((Phase.STOPPED,), (Event.START_REQUESTED,), Edge(Phase.WAKING, "it shall run again", (Action.NOTE_WAKE,))),
    ((Phase.WAKING,), (Event.SLOT_FOUND,), Edge(Phase.WAKING_PLACED, "its machine has room for it")),
    ((Phase.WAKING,), (Event.FAILED,), Edge(Phase.HALTED, "its machine had no room in time", (Action.NOTE_STOP,))),
    ((Phase.WAKING,), (Event.STOP_REQUESTED,), Edge(Phase.HALTED, "nothing of it runs yet", (Action.NOTE_STOP,))),
    ((Phase.WAKING_PLACED,), (Event.WRITTEN,), Edge(Phase.RESTARTING, "its slot is on record")),
    (
        (Phase.WAKING_PLACED,),
        (*_NOT_WRITTEN, Event.STOP_REQUESTED),
        Edge(Phase.HALTED, "its slot does not know of it yet", _FREE_STOPPED),
    ),
    (
        (Phase.RESTARTING,),
        (Event.STARTED,),
        Edge(Phase.CONFIRMING, "the agent answered and the command, if any, started", (Action.NOTE_START,)),
    ),
    ((Phase.RESTARTING,), (Event.FAILED,), Edge(Phase.HALTED, "its start failed: it is stopped", _FREE_STOPPED)),
    (
        (Phase.RESTARTING,),
        (Event.UNCLEAR_START, Event.SLOT_LOST),
        Edge(Phase.HALTING_ALONE, "its container may run", (Action.DISCARD_SLOT,)),
    ),
    (
        (Phase.RESTARTING,),
        (Event.SLOT_OCCUPIED,),
        Edge(Phase.WAKING, "its slot holds another sandbox", (Action.DISCARD_SLOT,)),
    ),
]

_END_PERSISTENT: _Rows = [
    (
        (Phase.HALTING, Phase.RESTARTING),
        (Event.END_REQUESTED,),
        Edge(Phase.STOPPING, "somebody asked: its slot ends it"),
    ),
    (
        (Phase.HALTING_ALONE, Phase.HALTED, Phase.VACATING, Phase.STOPPED, Phase.WAKING),
        (Event.END_REQUESTED,),
        Edge(Phase.REMOVING, "somebody asked, and nothing of it runs in a slot"),
    ),
    (
        (Phase.WAKING_PLACED,),
        (Event.END_REQUESTED,),
        Edge(Phase.REMOVING, "somebody asked, and its slot does not know of it yet", (Action.FREE_SLOT,)),
    ),
    ((Phase.STOPPING,), (Event.HALTED,), Edge(Phase.REMOVING, "it had stopped before: its disk is removed")),
    ((Phase.STOPPING,), (Event.UNHELD,), Edge(Phase.REMOVING, "its slot does not hold it", (Action.DISCARD_SLOT,))),
]

EDGES: dict[tuple[Phase, Event], Edge] = {
    (phase, event): edge
    for phases, events, edge in (*_START, *_RUN, *_STOP, *_HALT, *_WAKE, *_END_PERSISTENT)
    for phase in phases
    for event in events
}


def step(phase: Phase, event: Event) -> tuple[Phase, tuple[Action, ...]]:
    """The next phase, and what is to be done, in that order; the last may be an activity. `FailedPrecondition` where
    that is illegal."""
    edge = EDGES.get((phase, event))
    if edge is None:
        raise FailedPrecondition(f"{event} cannot happen to a sandbox that is {phase}", state=phase)
    if edge.to is phase or edge.to not in ACTIVITY:
        return edge.to, edge.actions
    return edge.to, (*edge.actions, ACTIVITY[edge.to])


@dataclass(slots=True)
class Lifecycle:
    """One sandbox's phase. `history`: (unix seconds, event, phase reached) of its latest steps in this controller,
    newest last."""

    phase: Phase = Phase.ACCEPTING
    history: list[tuple[float, Event, Phase]] = field(default_factory=list, compare=False)
    _stepped: asyncio.Event | None = field(default=None, compare=False, repr=False)

    def apply(self, event: Event, now: float) -> tuple[Action, ...]:
        """Makes the step and returns what is to be done; an illegal one raises `FailedPrecondition` with the history in
        its message."""
        try:
            self.phase, actions = step(self.phase, event)
        except FailedPrecondition as error:
            path = " → ".join(f"{past}:{phase}" for _, past, phase in self.history) or "none"
            raise FailedPrecondition(f"{error.message} (history: {path})", state=self.phase) from None
        self.history = [] if self.phase is Phase.CLOSED else [*self.history[-_HISTORY:], (now, event, self.phase)]
        if self._stepped is not None:
            self._stepped.set()
            self._stepped = None
        return actions

    async def reached(self, phases: Collection[Phase]) -> None:
        """Waits until it is in one of `phases`."""
        while self.phase not in phases:
            if self._stepped is None:
                self._stepped = asyncio.Event()
            await self._stepped.wait()
