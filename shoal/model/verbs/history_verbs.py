"""What happened, and what was used."""
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from shoal.model.access import AuditEntry, SandboxEvent, Scope
from shoal.model.metrics import Series
from shoal.model.overview import Overview
from shoal.model.profile import CreateProfile
from shoal.model.usage import SandboxLoad, SandboxUsage, UsageRow
from shoal.model.verbs.verb import verb


@verb(Scope.ADMIN, "GET /v1/audit", many="entries")
def audit(before: int | None, limit: int) -> list[AuditEntry]:
    """Who did what, newest first, with an id below `before`; up to 1,000."""


@verb(Scope.READ)
def events(
    after: int | None, sandbox_id: str | None = None, environment: str | None = None, wait_s: float = 0.0
) -> list[SandboxEvent]:
    """Events with an id above `after`, oldest first, at most 1,000; waits up to `wait_s` (30 at most) for the first.
    `after` None: only those that come from now on. Of one sandbox, of one environment (None: all that the caller may
    see)."""


@verb(Scope.READ)
def last_event() -> int:
    """The id of the newest event."""


@verb(Scope.READ, everywhere=True)
def metrics() -> dict[Series, float]:
    """The cluster's metrics: what replicas reported, sandboxes by state, ends by reason, creates, nodes."""


@verb(Scope.READ, "GET /v1/sandboxes/{sandbox_id}/usage")
def sandbox_usage(sandbox_id: str, since: float | None = None) -> SandboxUsage:
    """What a sandbox uses now and used in the last hour, also for an hour after its end. `since`: only the points after
    that time (unix seconds)."""


@verb(Scope.READ, "GET /v1/sandboxes/{sandbox_id}/profile")
def profile(sandbox_id: str) -> CreateProfile:
    """Where the time of its create went, step by step."""


@verb(Scope.READ, "GET /v1/usage/now", many="sandboxes")
def loads(environment: str | None = None) -> list[SandboxLoad]:
    """What sandboxes that run used when their nodes looked last, of one environment or (None) of all that the caller
    may see. Some seconds old; one that has just started is missing. `EnvironmentNotFound`."""


@verb(Scope.READ, "GET /v1/usage", many="usage")
def usage(
    by: str = "environment", since: float | None = None, until: float | None = None, environment: str | None = None
) -> list[UsageRow]:
    """What sandboxes used from `since` to `until` (unix seconds, to the hour; None: ever, now), of one environment or
    (None) of all that the caller may see. `by`: `environment`, `day`, `hour` or `tag:KEY`. Half a minute late.
    `InvalidRequest`, `EnvironmentNotFound`."""


@verb(Scope.READ, "GET /v1/overview")
def overview(environment: str | None = None, since: float | None = None) -> Overview:
    """The cluster at a glance, with series of the last hour: of one environment, or (None) of all that the caller may
    see. `since`: only the points after that time (unix seconds). `EnvironmentNotFound`."""
