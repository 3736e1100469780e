"""Pools of sandboxes that are kept ready."""
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from shoal.model.access import Scope
from shoal.model.pools import PoolInfo
from shoal.model.spec import SandboxSpec
from shoal.model.verbs.verb import Retry, verb


@verb(Scope.RUN, "POST /v1/pools", audit="pool.create")
def create_pool(name: str, spec: SandboxSpec, min_ready: int, max_ready: int, replace: bool) -> PoolInfo:
    """A new pool of the spec's environment, which keeps sandboxes of `spec` ready: at least `min_ready` and, as more
    are taken, up to `max_ready`. A create that asks for the same takes one by itself. Again with the same arguments:
    the same pool. `replace`: in place of another of that name, of which all that is ready ends.

    Raises `InvalidRequest` (with `field`), `AlreadyExists` (name; or `spec`, for another pool of the environment that
    keeps the same), `QuotaExceeded`, `EnvironmentNotFound`. What is ready takes no room from the environment's
    sandboxes: beyond the quota none is made, and as sandboxes use it up, what is ready ends."""


@verb(Scope.READ, "GET /v1/pools", many="pools")
def pools(environment: str | None) -> list[PoolInfo]:
    """The pools of an environment, or (None) all that the caller may see, by environment and name."""


@verb(Scope.READ, "GET /v1/pools/{name}")
def pool(name: str, environment: str) -> PoolInfo:
    """One, with what there is of it now; `PoolNotFound`."""


@verb(Scope.RUN, "PUT /v1/pools/{name}/size", audit="pool.resize")
def resize_pool(name: str, environment: str, min_ready: int, max_ready: int) -> PoolInfo:
    """Changes how many are kept ready; those beyond `max_ready` end. `InvalidRequest`, `QuotaExceeded`,
    `PoolNotFound`."""


@verb(Scope.RUN, "DELETE /v1/pools/{name}", audit="pool.delete", retry=Retry.NEVER)
def delete_pool(name: str, environment: str) -> None:
    """Deletes it. What is ready of it ends; sandboxes that were taken from it live on. `PoolNotFound`."""
