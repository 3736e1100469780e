"""Which event leads from which phase to which, what is done on the way, and why: the table of edges.

Deciding is pure and here: `step` looks up an edge of the table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field

from shoal.actors.controller.phase import ACTIVITY, LOSABLE, Action, Event, Phase
from shoal.model.errors import FailedPrecondition


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
_STOPPING = (
    Phase.HALTING,
    Phase.HALTING_ALONE,
    Phase.HALTED,
    Phase.VACATING,
    Phase.STOPPING,
    Phase.REMOVING,
)
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
        (Phase.ACCEPTING_READY,),
        (Event.WRITTEN,),
        Edge(
            Phase.RUNNING,
            "accepted, with the container that was ready: its slot is told now",
            (Action.COUNT_ACCEPTANCE, Action.NOTE_START),
        ),
    ),
    (
        (Phase.ACCEPTING_READY,),
        (Event.REFUSED,),
        Edge(
            Phase.REJECTED,
            "the store wrote nothing: it never was, but its container may have been used",
            (Action.DISCARD_SLOT, Action.RETRACT),
        ),
    ),
    (
        (Phase.ACCEPTING_READY,),
        (Event.UNCLEAR_WRITE,),
        Edge(Phase.ENDED, "the next controller would know it as running, so its end is written after it", _DISCARD),
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
    *(((phase,), (Event.STOP_REQUESTED,), Edge(phase, "it stops already")) for phase in _STOPPING),
    (
        (Phase.STOPPED,),
        (Event.STOP_REQUESTED,),
        Edge(Phase.HALTED, "it was to start again by itself, and shall not", (Action.NOTE_STOP,)),
    ),
]

_SUSPEND: _Rows = [
    (
        (Phase.CONFIRMING, Phase.RUNNING, Phase.ADOPTING),
        (Event.SUSPEND_REQUESTED,),
        Edge(Phase.SUSPENDING, "somebody asked: its node saves its memory, which needs no slot"),
    ),
    (
        (Phase.SUSPENDING,),
        (Event.SUSPENDED,),
        Edge(Phase.HALTED, "it has stopped, and its memory is saved", (Action.NOTE_STOP,)),
    ),
    ((Phase.SUSPENDING,), (Event.NOT_SUSPENDED,), Edge(Phase.CONFIRMING, "it runs on: that is written anew")),
    (
        (Phase.SUSPENDING,),
        (Event.SLOT_LOST,),
        Edge(Phase.ADOPTING, "it runs on, and its slot died", (Action.FORGET_SLOT,)),
    ),
    ((Phase.SUSPENDING,), (Event.STOP_REQUESTED,), Edge(Phase.HALTING_ALONE, "somebody asked: its node stops it")),
    (
        (Phase.SUSPENDING,),
        (Event.END_REQUESTED,),
        Edge(Phase.REMOVING, "somebody asked: its node removes its container"),
    ),
    *(
        ((phase,), (Event.SUSPEND_REQUESTED,), Edge(phase, "it stops already, or has stopped"))
        for phase in (Phase.SUSPENDING, *_STOPPING, Phase.STOPPED)
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

_MOVE: _Rows = [
    (
        (Phase.STOPPED,),
        (Event.MOVE_REQUESTED,),
        Edge(Phase.MOVING, "it is to leave its machine"),
    ),
    ((Phase.MOVING,), (Event.MOVED,), Edge(Phase.MOVED, "its files are stored", (Action.NOTE_MOVE,))),
    ((Phase.MOVING,), (Event.NOT_MOVED,), Edge(Phase.STOPPED, "its files stay where they are")),
    ((Phase.MOVED,), (Event.WRITTEN,), Edge(Phase.STOPPED, "that is on record, and its old container is gone")),
    *(
        ((phase,), (Event.MOVE_REQUESTED,), Edge(phase, "its move is under way"))
        for phase in (Phase.MOVING, Phase.MOVED)
    ),
    (
        (Phase.MOVING, Phase.MOVED),
        (Event.STOP_REQUESTED,),
        Edge(Phase.HALTED, "it was to start again by itself, and shall not", (Action.NOTE_STOP,)),
    ),
]

_END_PERSISTENT: _Rows = [
    (
        (Phase.HALTING, Phase.RESTARTING),
        (Event.END_REQUESTED,),
        Edge(Phase.STOPPING, "somebody asked: its slot ends it"),
    ),
    (
        (
            Phase.HALTING_ALONE,
            Phase.HALTED,
            Phase.VACATING,
            Phase.STOPPED,
            Phase.WAKING,
            Phase.MOVING,
            Phase.MOVED,
        ),
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
    for phases, events, edge in (*_START, *_RUN, *_STOP, *_HALT, *_SUSPEND, *_WAKE, *_MOVE, *_END_PERSISTENT)
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
    _waiting: list[tuple[Collection[Phase], asyncio.Future[None]]] = field(
        default_factory=list, compare=False, repr=False
    )

    def apply(self, event: Event, now: float) -> tuple[Action, ...]:
        """Makes the step and returns what is to be done; an illegal one raises `FailedPrecondition` with the history in
        its message."""
        try:
            self.phase, actions = step(self.phase, event)
        except FailedPrecondition as error:
            path = " → ".join(f"{past}:{phase}" for _, past, phase in self.history) or "none"
            raise FailedPrecondition(f"{error.message} (history: {path})", state=self.phase) from None
        self.history = [] if self.phase is Phase.CLOSED else [*self.history[-_HISTORY:], (now, event, self.phase)]
        for phases, reached in self._waiting:
            if self.phase in phases and not reached.done():
                reached.set_result(None)
        return actions

    async def reached(self, phases: Collection[Phase]) -> None:
        """Waits until it is in one of `phases`."""
        while self.phase not in phases:
            waiting = phases, asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            try:
                await waiting[1]
            finally:
                self._waiting.remove(waiting)
