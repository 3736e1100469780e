"""What is said of a sandbox's end where it is the controller that says it."""

from __future__ import annotations

import time

from shoal.actors.controller.record import SandboxRecord
from shoal.actors.messages import End
from shoal.model.errors import ImageNotFound, SandboxEnded, ShoalError
from shoal.model.states import Reason

ON_REQUEST = "terminated on request"


def vanished(record: SandboxRecord, why: str) -> End:
    """Its container is gone, and nobody lives who could say how: by what was asked for, or else by somebody outside Shoal."""
    if record.ended_by is not None:
        return given_up(ON_REQUEST)
    return End(Reason.EVICTED, None, why, time.time())


def node_lost() -> End:
    return End(Reason.NODE_LOST, None, "its machine is gone; create it again", time.time())


def outlived(record: SandboxRecord) -> End:
    """Its lifetime is over, and no actor holds it that would say so."""
    return End(Reason.TIMEOUT, None, f"its lifetime of {record.spec.timeout:g} s was over; raise timeout=", time.time())


def given_up(message: str) -> End:
    """It was ended on request, and there is no exit code to tell."""
    return End(Reason.TERMINATED, None, message, time.time())


def too_late() -> End:
    """A controller that was restarted found it half made, and nobody waits for it any more."""
    message = "the controller was restarted while it was made, and its deadline has passed; create it again"
    return End(Reason.START_FAILED, None, message, time.time())


def failed_start(error: ShoalError) -> End:
    reason = Reason.IMAGE_ERROR if isinstance(error, ImageNotFound) else Reason.START_FAILED
    return End(reason, getattr(error, "exit_code", None), error.message, time.time())


def ended_error(record: SandboxRecord) -> SandboxEnded:
    """What a caller gets who wants something of a sandbox that has ended."""
    assert record.end is not None
    end = record.end
    return SandboxEnded(
        f"sandbox {record.id} has ended ({end.reason.value}): {end.message}",
        reason=end.reason.value,
        exit_code=end.returncode,
    )
