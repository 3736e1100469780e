"""When a persistent sandbox that has stopped starts again by itself. Pure: the caller passes the time.

Who asked for a stop, or let it run out of use or time, wants it stopped. What else stops it is a failure, but for a
command that ended with 0 and a cluster that was shut down. Each further start in a row waits twice as long, so that one
that always fails costs little; one that ran well for a while begins anew.
"""

from __future__ import annotations

from shoal.actors.controller.record import SandboxRecord
from shoal.actors.messages import End
from shoal.model.spec import Restart
from shoal.model.states import Reason

FIRST_S = 1.0
LONGEST_S = 300.0
WELL_S = 60.0
"""Seconds for which it must have run so that its next failure counts as its first."""

_ASKED_FOR = frozenset({Reason.STOPPED, Reason.SUSPENDED, Reason.IDLE_TIMEOUT, Reason.TIMEOUT})
_USELESS = frozenset({Reason.OUT_OF_DISK})
"""Ends that a start would lead to again, for the disk is the same."""
_PLANNED = frozenset({Reason.SHUTDOWN, Reason.NODE_LOST})
"""Stops that are not its own doing: it starts as soon as its machine is there."""


def due_at(record: SandboxRecord) -> float | None:
    """Unix seconds from which it is to be started; None: not by itself."""
    stop = record.stop
    if stop is None or record.ended_by is not None or not wanted(record.spec.restart, stop):
        return None
    return stop.ended_at + pause(record.restarts, stop.reason)


def is_due(record: SandboxRecord, now: float) -> bool:
    """Whether it is to be started. One that stopped in the future, as the clock was set back, waits no longer than any
    other."""
    due = due_at(record)
    return due is not None and not now < due <= now + LONGEST_S


def wanted(policy: Restart, stop: End) -> bool:
    """Whether `policy` starts it again after that stop."""
    if policy == "no" or stop.reason in _ASKED_FOR or stop.reason in _USELESS:
        return False
    if policy == "always":
        return True
    return stop.reason is not Reason.SHUTDOWN and (stop.reason is not Reason.COMPLETED or stop.returncode != 0)


def pause(restarts: int, reason: Reason) -> float:
    """Seconds to wait before the next start, after so many in a row."""
    if reason in _PLANNED:
        return 0.0
    return float(min(FIRST_S * 2 ** min(restarts, 16), LONGEST_S))


def count(restarts: int, ran_s: float | None) -> int:
    """How many starts in a row count when it stops after having run for `ran_s` (None: it did not run)."""
    return 0 if ran_s is not None and ran_s >= WELL_S else restarts
