"""Sandboxes: making, finding and ending them."""
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shoal.model.access import Scope
from shoal.model.errors import ShoalError
from shoal.model.grants import Grant
from shoal.model.info import Listing, LogChunk, Page, SandboxInfo
from shoal.model.spec import SandboxSpec
from shoal.model.verbs.verb import Made, Retry, verb


@verb(Scope.RUN, "POST /v1/sandboxes", audit="sandbox.create", retry=Retry.UNANSWERED)
def create(spec: SandboxSpec, deadline: float, wait: bool) -> Made:
    """Creates a sandbox within `deadline` seconds and returns it running; not `wait`: as soon as it is on record. Its
    idempotency key makes it safe to send twice.

    Raises `InvalidRequest` (with `field`), `ImageNotFound`, `AlreadyExists` (name), `CommandNotFound`, `QuotaExceeded`,
    `DeadlineExceeded`; nothing is left then.
    """


@verb(Scope.RUN, "POST /v1/sandboxes/batch", audit="sandbox.create", retry=Retry.UNANSWERED)
def create_many(specs: Sequence[SandboxSpec], deadline: float, wait: bool) -> list[Made | ShoalError]:
    """Up to 1,000 creates; for each, in the same order, what `create` would have returned or raised."""


@verb(Scope.RUN)
def give_up(keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Ends the sandboxes of creates whose caller has gone. `keys`: (environment, idempotency key).
    Returns the keys that it knows."""


@verb(Scope.READ, "GET /v1/sandboxes/{sandbox_id}")
def get(sandbox_id: str) -> SandboxInfo:
    """Its newest state, its end included; `SandboxNotFound` only if it never existed."""


@verb(Scope.READ, "GET /v1/sandboxes/by-name/{name}")
def find(name: str, environment: str) -> SandboxInfo:
    """The living sandbox of that name, else the last that had it; `SandboxNotFound`."""


@verb(Scope.READ, "GET /v1/sandboxes")
def list_sandboxes(listing: Listing) -> Page:
    """Sandboxes in the listing's order, as far as one look reaches; `EnvironmentNotFound`."""


@verb(Scope.RUN, "PUT /v1/sandboxes/{sandbox_id}/tags", audit="sandbox.tags")
def set_tags(sandbox_id: str, tags: Mapping[str, str]) -> SandboxInfo:
    """Replaces its tags; `SandboxEnded`."""


@verb(Scope.RUN, "POST /v1/sandboxes/renew", many="renewed")
def renew(sandbox_ids: Sequence[str]) -> list[str]:
    """Renews the owner leases of up to 1,000 sandboxes, each for its `owner_lease` from now on. Returns those renewed:
    not those that have ended, have no lease, or are not the caller's to see."""


@verb(Scope.RUN, "DELETE /v1/sandboxes/{sandbox_id}", audit="sandbox.terminate", takes=60.0)
def terminate(sandbox_id: str) -> SandboxInfo:
    """Ends it and returns once its processes are gone. For one that has ended: its end."""


@verb(Scope.RUN, "POST /v1/sandboxes/{sandbox_id}/stop", audit="sandbox.stop", takes=90.0)
def stop(sandbox_id: str) -> SandboxInfo:
    """Stops a persistent sandbox and returns once nothing of it runs; its disk, name, tags and tunnels stay. It does
    not start again by itself then. One that is suspended loses its memory. `SandboxEnded`, `FailedPrecondition` where
    it is not persistent."""


@verb(Scope.RUN, "POST /v1/sandboxes/{sandbox_id}/start", audit="sandbox.start", takes="deadline")
def start(sandbox_id: str, deadline: float) -> SandboxInfo:
    """Starts a persistent sandbox that is stopped, within `deadline` seconds; for one that runs: its state.

    Raises `SandboxEnded`, `FailedPrecondition` where it is not persistent or its machine is not there, `QuotaExceeded`,
    `DeadlineExceeded`; it is stopped then.
    """


@verb(Scope.RUN, "POST /v1/sandboxes/{sandbox_id}/suspend", audit="sandbox.suspend", takes=180.0)
def suspend(sandbox_id: str) -> SandboxInfo:
    """Stops a persistent sandbox in gVisor and keeps its memory, too: its next start goes on where it was. Whatever
    would reach it starts it, if it has `autostart`. For one that is suspended: its state.

    Raises `SandboxEnded`; `FailedPrecondition` where it does not run, is not persistent, or (state `no_memory`) has
    another runtime, or what kept its memory from being saved: it runs on then.
    """


@verb(Scope.RUN, "POST /v1/sandboxes/{sandbox_id}/pause", audit="sandbox.pause", takes=30.0)
def pause(sandbox_id: str) -> SandboxInfo:
    """Freezes all its processes where they are, and cuts its connections; it keeps its memory. For one that is paused:
    its state. `SandboxEnded`, `FailedPrecondition` where it does not run, or its engine cannot."""


@verb(Scope.RUN, "POST /v1/sandboxes/{sandbox_id}/resume", audit="sandbox.resume", takes=120.0)
def resume(sandbox_id: str) -> SandboxInfo:
    """Lets a paused sandbox go on, or starts a suspended one; for one that runs: its state. `SandboxEnded`,
    `FailedPrecondition` where it is none of these, and the errors of `start`."""


@verb(Scope.READ, "GET /v1/sandboxes/{sandbox_id}/wait", takes="timeout")
def wait(sandbox_id: str, timeout: float) -> SandboxInfo:
    """Its state once it has ended, or after `timeout` seconds (30 at most), whichever is first."""


@verb(Scope.READ, retry=Retry.UNANSWERED)
def grant(sandbox_id: str) -> Grant:
    """Where its agent is reached, and a token; `SandboxEnded`, `FailedPrecondition` before it runs."""


@verb(Scope.READ, "GET /v1/sandboxes/{sandbox_id}/logs")
def logs(sandbox_id: str, fd: int, offset: int) -> LogChunk:
    """Output of its own command as kept after its end or stop (`fd` 1 or 2); `FailedPrecondition` while it runs: read
    from the agent."""
