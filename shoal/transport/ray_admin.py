"""Administration inside a Ray cluster: thin calls to the controller."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import cast

from shoal.model.access import AuditEntry, Environment, Quota, SandboxEvent, Scope, StoredToken, TokenInfo
from shoal.transport.admin import Admin, ReplicaSide
from shoal.transport.ray_calls import Controller


class RayAdmin(Admin):
    """The controller's accounts, audit log and events."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def create_environment(self, name: str, quota: Quota) -> Environment:
        return cast(Environment, await self._controller.call("create_environment", name, quota))

    async def environments(self) -> Sequence[Environment]:
        return cast("list[Environment]", await self._controller.call("environments"))

    async def environment(self, name: str) -> Environment:
        return cast(Environment, await self._controller.call("environment", name))

    async def set_quota(self, name: str, quota: Quota) -> Environment:
        return cast(Environment, await self._controller.call("set_quota", name, quota))

    async def delete_environment(self, name: str) -> None:
        await self._controller.call("delete_environment", name)

    async def create_token(
        self, name: str, environment: str, scope: Scope, expires_in: float | None
    ) -> tuple[TokenInfo, str]:
        made = await self._controller.call("create_token", name, environment, scope, expires_in)
        return cast("tuple[TokenInfo, str]", made)

    async def tokens(self) -> Sequence[TokenInfo]:
        return cast("list[TokenInfo]", await self._controller.call("tokens"))

    async def revoke_token(self, token_id: str) -> TokenInfo:
        return cast(TokenInfo, await self._controller.call("revoke_token", token_id))

    async def audit(self, before: int | None, limit: int) -> Sequence[AuditEntry]:
        return cast("list[AuditEntry]", await self._controller.call("audit", before, limit))

    async def events(
        self, after: int | None, *, sandbox_id: str | None = None, environment: str | None = None, wait_s: float = 0
    ) -> builtins.list[SandboxEvent]:
        found = await self._controller.call("events", after, sandbox_id, environment, wait_s)
        return cast("list[SandboxEvent]", found)

    async def last_event(self) -> int:
        return cast(int, await self._controller.call("last_event"))


class RayReplicaSide(ReplicaSide):
    """What the API's replicas ask of the controller."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def stored_token(self, token_id: str) -> StoredToken | None:
        return cast("StoredToken | None", await self._controller.call("stored_token", token_id))

    async def report(
        self, audit: Sequence[AuditEntry], counters: Mapping[str, float], used: Mapping[str, float]
    ) -> None:
        await self._controller.call("report", list(audit), dict(counters), dict(used))

    async def metrics(self) -> dict[str, float]:
        return cast("dict[str, float]", await self._controller.call("metrics"))

    async def tunnel_secret(self) -> bytes:
        return cast(bytes, await self._controller.call("tunnel_secret"))
