"""The phases of a sandbox's life in the controller, and what is done on the way from one to the next.

    accepting ──► queued ──► placing ──► starting ──► confirming ──► running ◄──► adopting
        │                       ▲            │             ▲            │
        ▼                       │            ▼             └── after ───┤
    rejected                retrying ◄── cleaning             adopting  ▼
                                                                     stopping, removing ──► ended ──► closing ──► closed

A persistent one goes round, and leaves only where its end is asked for:

    running ──► halting, halting_alone, suspending ──► halted ──► vacating ──► stopped
       ▲                                                 ▲                        │  ▲
       └── confirming ◄── restarting ◄── waking_placed ◄─┴── waking ◄──────────────┤  │
                                                                                  └──┴── moving ──► moved ──► stopped

`phase_table.py` has the edges, `supervisor.py` does what they say. The public state follows from the phase.
"""

from __future__ import annotations

from enum import StrEnum

from shoal.model.states import State


class Phase(StrEnum):
    """What the controller is doing with a sandbox. In each phase but `aborting` and `stopped` one activity is under
    way: see `ACTIVITY`."""

    ACCEPTING = "accepting"  # its acceptance is being written
    ACCEPTING_PLACED = "accepting_placed"  # the same, together with the idle slot that will start it
    ACCEPTING_READY = "accepting_ready"  # the same, together with the container that a slot held ready: it runs by that
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
    SUSPENDING = "suspending"  # its node saves its memory and then stops it
    HALTED = "halted"  # it has stopped: that is being written
    VACATING = "vacating"  # its stop is on record, or will be as soon as the store is back; its slot is being wiped
    STOPPED = "stopped"  # nothing of it runs
    MOVING = "moving"  # its files are being stored, so that it can start on another machine
    MOVED = "moved"  # they are: that is being written, and then its container is removed from its old machine
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
    SUSPEND_REQUESTED = "suspend_requested"  # the same
    SUSPENDED = "suspended"  # it has stopped, and its disk and its memory are kept
    NOT_SUSPENDED = "not_suspended"  # it runs on
    START_REQUESTED = "start_requested"
    MOVE_REQUESTED = "move_requested"
    MOVED = "moved"  # its files are stored
    NOT_MOVED = "not_moved"
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
    NOTE_MOVE = "note_move"  # its files are on no machine now

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
    SUSPEND = "suspend"
    WRITE_STOP = "write_stop"
    FIND_OWN_SLOT = "find_own_slot"
    RESTART = "restart"
    MOVE = "move"
    WRITE_MOVE = "write_move"


ACTIVITY: dict[Phase, Action] = {
    Phase.ACCEPTING: Action.WRITE_ACCEPTANCE,
    Phase.ACCEPTING_PLACED: Action.WRITE_ACCEPTANCE,
    Phase.ACCEPTING_READY: Action.WRITE_ACCEPTANCE,
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
    Phase.SUSPENDING: Action.SUSPEND,
    Phase.HALTED: Action.WRITE_STOP,
    Phase.VACATING: Action.CLEAR,
    Phase.WAKING: Action.FIND_OWN_SLOT,
    Phase.WAKING_PLACED: Action.WRITE_SLOT,
    Phase.RESTARTING: Action.RESTART,
    Phase.MOVING: Action.MOVE,
    Phase.MOVED: Action.WRITE_MOVE,
}
"""What is under way in a phase. `aborting` has no activity of its own: that of the phase before it goes on. In
`stopped` nothing is under way."""

STATE: dict[Phase, State] = {
    Phase.ACCEPTING: State.PENDING,
    Phase.ACCEPTING_PLACED: State.STARTING,
    Phase.ACCEPTING_READY: State.RUNNING,
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
    Phase.SUSPENDING: State.RUNNING,
    Phase.HALTED: State.STOPPED,
    Phase.VACATING: State.STOPPED,
    Phase.STOPPED: State.STOPPED,
    Phase.WAKING: State.STARTING,
    Phase.WAKING_PLACED: State.STARTING,
    Phase.RESTARTING: State.STARTING,
    Phase.MOVING: State.STOPPED,
    Phase.MOVED: State.STOPPED,
}
"""The public state in each phase before the end. After it the reason of the end decides: see `SandboxRecord.state`."""

ACCEPTED = frozenset(Phase) - {Phase.ACCEPTING, Phase.ACCEPTING_PLACED, Phase.ACCEPTING_READY}
"""It is known whether the sandbox is on record."""

ENDED = frozenset({Phase.ENDED, Phase.CLOSING, Phase.CLOSED})
SETTLED = frozenset({Phase.CLOSING, Phase.CLOSED, Phase.REJECTED})
"""Its end is on record, or will be as soon as the store is back."""

OVER = ENDED | SETTLED
"""Nothing of it runs any more, for good."""

RESTING = frozenset({Phase.HALTED, Phase.VACATING, Phase.STOPPED, Phase.MOVING, Phase.MOVED})
"""Nothing of it runs, but its disk is kept."""

ON_RECORD_AS_STOPPED = RESTING - {Phase.HALTED}
"""Its stop is on record, or will be as soon as the store is back."""

LOSABLE = frozenset(
    {
        Phase.CONFIRMING,
        Phase.RUNNING,
        Phase.ADOPTING,
        Phase.HALTING,
        Phase.HALTING_ALONE,
        Phase.SUSPENDING,
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
