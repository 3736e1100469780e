"""What a client may do beside sandboxes: environments, tokens, who did what, what happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shoal.client.dual_method import dual_method
from shoal.client.events import Events
from shoal.model.access import AuditEntry, Environment, Quota, Scope, TokenInfo
from shoal.model.errors import InvalidRequest
from shoal.model.validate import check_name, check_number

if TYPE_CHECKING:
    from shoal.transport.contract import Transport

_MAX_AUDIT = 1000
_MAX_LIFETIME_S = 10 * 366 * 86400


class Administration:
    """The part of a `Client` that needs more than sandboxes do: over HTTP a token of the scope `admin`, but for `events`."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    # Environments

    @dual_method
    async def create_environment(
        self,
        name: str,
        *,
        sandboxes: int | None = None,
        cpu: float | None = None,
        memory: int | None = None,
        creates_per_minute: int | None = None,
    ) -> Environment:
        """A new environment, with a quota: the most that its living sandboxes may have together. None: no bound.

        `cpu` in cores and `memory` in MiB count the limits of sandboxes. Raises `AlreadyExists`, `InvalidRequest`, `PermissionDenied`.
        """
        check_name("name", name)
        return await self.transport.admin.create_environment(name, Quota(sandboxes, cpu, memory, creates_per_minute))

    @dual_method
    async def environments(self) -> Sequence[Environment]:
        """Those that you may see, by name, each with its quota and what is used of it."""
        return await self.transport.admin.environments()

    @dual_method
    async def environment(self, name: str) -> Environment:
        """One of them; `EnvironmentNotFound`."""
        check_name("name", name)
        return await self.transport.admin.environment(name)

    @dual_method
    async def set_quota(
        self,
        name: str,
        *,
        sandboxes: int | None = None,
        cpu: float | None = None,
        memory: int | None = None,
        creates_per_minute: int | None = None,
    ) -> Environment:
        """Replaces an environment's quota as a whole: what is not given has no bound then. What lives beyond it lives on.

        Not for an environment's own administrators: `PermissionDenied`.
        """
        check_name("name", name)
        return await self.transport.admin.set_quota(name, Quota(sandboxes, cpu, memory, creates_per_minute))

    @dual_method
    async def delete_environment(self, name: str) -> None:
        """Takes it away, and revokes its tokens. `FailedPrecondition` while sandboxes live in it; `main` stays (`InvalidRequest`).
        Its name is free again once what happened in it is forgotten."""
        check_name("name", name)
        await self.transport.admin.delete_environment(name)

    # Tokens

    @dual_method
    async def create_token(
        self,
        name: str,
        *,
        environment: str | None = None,
        scope: Scope | str = Scope.RUN,
        expires_in: float | None = None,
    ) -> tuple[TokenInfo, str]:
        """A new API token, and its text, which nobody can ask for again.

        `environment`: the only one that it sees (None: this client's own), `"*"` for all. `scope`: `read` (look), `run` (also create and enter
        sandboxes) or `admin` (also tokens). `expires_in` in seconds; None: never. `PermissionDenied` for more than you may yourself.
        """
        try:
            wanted = Scope(scope)
        except ValueError:
            raise InvalidRequest(f"scope: {scope!r} is none; say read, run or admin", field="scope") from None
        if expires_in is not None:
            check_number("expires_in", expires_in, 0, _MAX_LIFETIME_S, "seconds")
        where = environment if environment is not None else await self.transport.default_environment()
        return await self.transport.admin.create_token(name, where, wanted, expires_in)

    @dual_method
    async def tokens(self) -> Sequence[TokenInfo]:
        """Those that you may see, newest first, revoked and expired ones included; never their texts."""
        return await self.transport.admin.tokens()

    @dual_method
    async def revoke_token(self, token_id: str) -> TokenInfo:
        """Has a token (`tk-…`) refused from now on. Again is harmless; `TokenNotFound`."""
        return await self.transport.admin.revoke_token(token_id)

    # Looking back

    @dual_method
    async def audit(self, *, limit: int = 100, before: int | None = None) -> Sequence[AuditEntry]:
        """Who did what, newest first: up to `limit` (1,000 at most) entries with an id below `before`."""
        check_number("limit", limit, 0, _MAX_AUDIT, "entries", whole=True)
        return await self.transport.admin.audit(before, limit)

    def events(
        self, *, after: int | None = None, sandbox_id: str | None = None, environment: str | None = None
    ) -> Events:
        """What happens to sandboxes, as it happens and without end: iterate, with `for` or `async for`, and `close` it when it is enough.

        `after`: the id of an event, to have all since then; None: from now on. `sandbox_id`, `environment`: of that one only.
        """
        return Events(self.transport, after, sandbox_id, environment)
