"""The administration of a cluster: environments, tokens, who did what, what happened, figures.

A sibling of each transport (`Transport.admin`). The rules of `contract.py` hold here too. Who calls is in `shoal.model.access.caller`; what that
caller may not see does not exist for it: `EnvironmentNotFound`, `TokenNotFound` are then the answer, whether it is there or not.
"""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from shoal.model.access import AuditEntry, Environment, Quota, SandboxEvent, Scope, StoredToken, TokenInfo


class Admin(ABC):
    """What is not about one sandbox."""

    # Environments

    @abstractmethod
    async def create_environment(self, name: str, quota: Quota) -> Environment:
        """A new one; `AlreadyExists`, `InvalidRequest`."""

    @abstractmethod
    async def environments(self) -> Sequence[Environment]:
        """Those that the caller may see, by name, with their use."""

    @abstractmethod
    async def environment(self, name: str) -> Environment:
        """One; `EnvironmentNotFound`."""

    @abstractmethod
    async def set_quota(self, name: str, quota: Quota) -> Environment:
        """Replaces its quota. What lives beyond it lives on; new creates wait for room under it. For the cluster's own administrators."""

    @abstractmethod
    async def delete_environment(self, name: str) -> None:
        """Takes it away and revokes its tokens; `FailedPrecondition` while sandboxes live in it, `InvalidRequest` for `main`.
        Its name is free again once what happened in it is forgotten."""

    # Tokens

    @abstractmethod
    async def create_token(
        self, name: str, environment: str, scope: Scope, expires_in: float | None
    ) -> tuple[TokenInfo, str]:
        """A new token and its text, which nobody can ask for again. `expires_in` in seconds. `PermissionDenied` for more than the caller may."""

    @abstractmethod
    async def tokens(self) -> Sequence[TokenInfo]:
        """Those that the caller may see, newest first, revoked and expired ones included."""

    @abstractmethod
    async def revoke_token(self, token_id: str) -> TokenInfo:
        """It is refused from now on (by every replica within `api.token_cache` seconds). Again is harmless; `TokenNotFound`."""

    # Looking back

    @abstractmethod
    async def audit(self, before: int | None, limit: int) -> Sequence[AuditEntry]:
        """Who did what, newest first, with an id below `before`."""

    @abstractmethod
    async def events(
        self, after: int | None, *, sandbox_id: str | None = None, environment: str | None = None, wait_s: float = 0
    ) -> builtins.list[SandboxEvent]:
        """Events with an id above `after`, oldest first, at most 1,000; waits up to `wait_s` (30 at most) for the first. `after` None: only
        those that come from now on. Of one sandbox, of one environment (None: all that the caller may see)."""

    @abstractmethod
    async def last_event(self) -> int:
        """The id of the newest event."""


class ReplicaSide(ABC):
    """What only the API's replicas ask of the cluster."""

    @abstractmethod
    async def stored_token(self, token_id: str) -> StoredToken | None:
        """A token with its digest; None where there is none of that id (any more)."""

    @abstractmethod
    async def report(
        self, audit: Sequence[AuditEntry], counters: Mapping[str, float], used: Mapping[str, float]
    ) -> None:
        """What a replica did since it last said so: entries for the audit log, amounts to add to the cluster's counters (`name{label="value"}`),
        and when which token was last used."""

    @abstractmethod
    async def metrics(self) -> dict[str, float]:
        """The cluster's figures, by `name{label="value"}`: counters that replicas reported, sandboxes by state, ends by reason, creates,
        nodes."""

    @abstractmethod
    async def tunnel_secret(self) -> bytes:
        """The secret that connect tokens of tunnels are signed with: 32 bytes, derived from the cluster's."""
