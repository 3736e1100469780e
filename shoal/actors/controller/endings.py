"""The ends of sandboxes that the controller itself decides."""

from __future__ import annotations

import time
from dataclasses import replace

from shoal.actors.controller.record import SandboxRecord, StopRequest, secrets_of
from shoal.actors.messages import End
from shoal.model.errors import FailedPrecondition, ImageNotFound, SandboxEnded, ShoalError
from shoal.model.states import Reason, State

ON_REQUEST = "terminated on request"

SUSPENDED = "suspended on request; its memory is kept on its machine"

_REQUESTED = End(Reason.TERMINATED, None, ON_REQUEST, 0.0)


def vanished(record: SandboxRecord, why: str) -> End:
    """Its container is gone, and its slot cannot tell why: its end was requested, or somebody outside Shoal removed
    it."""
    if record.ended_by is not None:
        return given_up(ON_REQUEST)
    return End(Reason.EVICTED, None, why, time.time())


def node_lost() -> End:
    return End(Reason.NODE_LOST, None, "its machine is gone; create it again", time.time())


def machine_lost(record: SandboxRecord) -> End:
    """A persistent sandbox stops with its machine."""
    where = "" if record.home is None else f" {record.home.hostname or record.home.machine}"
    message = f"its machine{where} is gone, and has its disk; it can be started once that is back"
    if record.home is None and record.disk is not None:
        message = "the machine on which it started is gone; its disk is stored: start it again"
    return End(Reason.NODE_LOST, None, message, time.time(), kept=True)


def stop_unknown() -> End:
    """A persistent sandbox stopped while nobody could tell why."""
    message = "its actor was lost while it started or ran, and it was stopped; start it again"
    return End(Reason.EVICTED, None, message, time.time(), kept=True)


def not_resumed(*, lost: bool) -> End:
    """One that was suspended lost its actor while it was started."""
    if lost:
        message = "its actor was lost while it was started, and its memory with it: its next start is from its files"
        return End(Reason.EVICTED, None, message, time.time(), kept=True)
    message = "its actor was lost while it was started; its memory is kept: start it again"
    return End(Reason.SUSPENDED, None, message, time.time(), kept=True)


def stopped(request: StopRequest) -> End:
    """A persistent sandbox was stopped on request."""
    return End(request.reason, None, request.message, time.time(), kept=True)


def outlived(record: SandboxRecord) -> End:
    """Its lifetime is over, and it has no slot to tell that."""
    return End(Reason.TIMEOUT, None, f"its lifetime of {record.spec.timeout:g} s was over; raise timeout=", time.time())


def given_up(message: str) -> End:
    """It was ended on request, without an exit code."""
    return End(Reason.TERMINATED, None, message, time.time())


def follows_from_request(record: SandboxRecord) -> bool:
    """Whether the next controller would give it the same end by the request that is on record; and nothing secret is
    on record before the end is."""
    end = record.end
    requested = end is not None and record.ended_by is not None and replace(end, ended_at=0.0) == _REQUESTED
    return requested and not secrets_of(record.spec)


def evicted(message: str) -> End:
    """It had to make way."""
    return End(Reason.EVICTED, None, message, time.time())


def too_late() -> End:
    """A restarted controller found it half started, and nobody waits for it any more."""
    message = "the controller was restarted while it started, and its deadline has passed; create it again"
    return End(Reason.START_FAILED, None, message, time.time())


def failed_start(error: ShoalError) -> End:
    reason = Reason.IMAGE_ERROR if isinstance(error, ImageNotFound) else Reason.START_FAILED
    return End(reason, getattr(error, "exit_code", None), error.message, time.time())


def check_gives_memory(record: SandboxRecord) -> None:
    """Raises where the memory of a sandbox that lives cannot be taken."""
    if record.spec.runtime != "runsc":
        raise FailedPrecondition(
            f"memory can be taken of a sandbox in gVisor only, and {record.id} runs by {record.spec.runtime}; "
            'create it with runtime="runsc"',
            state="no_memory",
        )
    if record.paused_at is not None:
        raise paused_error(record)
    if record.spec.secrets:
        raise FailedPrecondition(
            f"the memory of {record.id} holds secrets, which must not come to be on a disk; keep its files alone, or "
            "create it without secrets",
            state="secrets",
        )


def stopped_error(record: SandboxRecord) -> FailedPrecondition:
    """The error for a caller who needs a persistent sandbox that is stopped."""
    if record.suspended:
        said = f"is suspended; let it go on with `sandbox.resume()` or `shoal resume {record.id}`"
    else:
        why = "" if record.stop is None else f" ({record.stop.reason.value})"
        said = f"is stopped{why}; start it with `sandbox.start()` or `shoal start {record.id}`"
    return FailedPrecondition(
        f"sandbox {record.id} {said}",
        state=State.STOPPED.value,
        reason=None if record.stop is None else record.stop.reason.value,
        suspended=record.suspended,
        autostart=record.spec.autostart,
    )


def paused_error(record: SandboxRecord) -> FailedPrecondition:
    """The error for a caller who needs a sandbox that is paused."""
    return FailedPrecondition(
        f"sandbox {record.id} is paused; let it go on with `sandbox.resume()` or `shoal resume {record.id}`",
        state=State.PAUSED.value,
        autostart=record.spec.autostart,
    )


def ended_error(record: SandboxRecord) -> SandboxEnded:
    """The error for a caller who needs a sandbox that has ended."""
    assert record.end is not None
    end = record.end
    return SandboxEnded(
        f"sandbox {record.id} has ended ({end.reason.value}): {end.message}",
        reason=end.reason.value,
        exit_code=end.returncode,
    )
