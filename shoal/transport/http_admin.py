"""The administration of a cluster through its API."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from urllib.parse import quote

from shoal.model.access import AuditEntry, Environment, Quota, SandboxEvent, Scope, TokenInfo
from shoal.transport import http_json
from shoal.transport.admin import Admin
from shoal.transport.http_calls import HttpCalls
from shoal.transport.http_events import events_after, newest_event, next_events

MAX_WAIT_S = 30.0
_EVENTS = "/v1/events"


class HttpAdmin(Admin):
    """`calls` carries the token, which says what it may do."""

    def __init__(self, calls: HttpCalls) -> None:
        self._calls = calls

    # Environments

    async def create_environment(self, name: str, quota: Quota) -> Environment:
        body = {"name": name, "quota": quota.to_dict()}
        # Sent twice it would say that the name is taken.
        data = await self._calls.json("POST", "/v1/environments", body=body, again=False)
        return http_json.decoded(http_json.environment, data)

    async def environments(self) -> Sequence[Environment]:
        data = await self._calls.json("GET", "/v1/environments")
        return http_json.many("environments", http_json.environment, data)

    async def environment(self, name: str) -> Environment:
        data = await self._calls.json("GET", f"/v1/environments/{_quoted(name)}")
        return http_json.decoded(http_json.environment, data)

    async def set_quota(self, name: str, quota: Quota) -> Environment:
        data = await self._calls.json("PUT", f"/v1/environments/{_quoted(name)}/quota", body=quota.to_dict())
        return http_json.decoded(http_json.environment, data)

    async def delete_environment(self, name: str) -> None:
        # Sent twice it would say that there is none.
        await self._calls.call("DELETE", f"/v1/environments/{_quoted(name)}", again=False)

    # Tokens

    async def create_token(
        self, name: str, environment: str, scope: Scope, expires_in: float | None
    ) -> tuple[TokenInfo, str]:
        body = {"name": name, "environment": environment, "scope": scope.value, "expires_in": expires_in}
        # Sent twice it would leave a token that nobody knows of.
        data = await self._calls.json("POST", "/v1/tokens", body=body, again=False)
        return http_json.decoded(lambda made: (http_json.token(made), str(made["token"])), data)

    async def tokens(self) -> Sequence[TokenInfo]:
        return http_json.many("tokens", http_json.token, await self._calls.json("GET", "/v1/tokens"))

    async def revoke_token(self, token_id: str) -> TokenInfo:
        return http_json.decoded(http_json.token, await self._calls.json("DELETE", f"/v1/tokens/{_quoted(token_id)}"))

    # Looking back

    async def audit(self, before: int | None, limit: int) -> Sequence[AuditEntry]:
        data = await self._calls.json("GET", "/v1/audit", query={"before": before, "limit": limit})
        return http_json.many("entries", http_json.audit_entry, data)

    async def events(
        self, after: int | None, *, sandbox_id: str | None = None, environment: str | None = None, wait_s: float = 0
    ) -> builtins.list[SandboxEvent]:
        path = _EVENTS if sandbox_id is None else f"/v1/sandboxes/{_quoted(sandbox_id)}/events"
        query: dict[str, int | str] = {"after": await self.last_event() if after is None else after}
        if sandbox_id is None and environment is not None:
            query["environment"] = environment
        found = [] if after is None else await events_after(self._calls, path, query)
        if found or wait_s <= 0:
            return found
        return await next_events(self._calls, path, query, min(wait_s, MAX_WAIT_S))

    async def last_event(self) -> int:
        return await newest_event(self._calls, _EVENTS)


def _quoted(name: str) -> str:
    return quote(name, safe="")
