"""The administration of a cluster in memory: environments, tokens, audit log, events, and the side of it that replicas
use.
"""

from __future__ import annotations

import asyncio
import builtins
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shoal.model import visibility
from shoal.model.access import (
    ANY_ENVIRONMENT,
    MAIN_ENVIRONMENT,
    AuditEntry,
    Environment,
    Quota,
    SandboxEvent,
    Scope,
    StoredToken,
    TokenInfo,
    caller,
    mint,
)
from shoal.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    PermissionDenied,
)
from shoal.model.ids import NAME
from shoal.model.metrics import Series

_TICK_S = 0.005
_MOST_EVENTS = 1000
Note = Callable[[str, Any], None]


def sees(environment: str) -> bool:
    """Whether the caller may know of what is in `environment`."""
    return visibility.sees(caller.get(), environment)


class FakeAdmin:
    """Administration in memory.

    `note` hears of every call first, and may raise; `usage` says what an environment uses.
    """

    def __init__(self, note: Note, usage: Callable[[str], Quota], environments: Sequence[str]) -> None:
        self.note = note
        self.stored: dict[str, StoredToken] = {}
        self.entries: builtins.list[AuditEntry] = []
        self.happened: builtins.list[SandboxEvent] = []
        self._usage = usage
        self._environments = {name: Environment(name, Quota(), time.time()) for name in environments}

    # Environments

    async def create_environment(self, name: str, quota: Quota) -> Environment:
        self.note("create_environment", name)
        if not NAME.fullmatch(name):
            raise InvalidRequest(f"name: {name!r} is no name; use letters, digits, dots and dashes", field="name")
        if name in self._environments:
            raise AlreadyExists(f"name: there is an environment {name!r} already; choose another", field="name")
        self._environments[name] = Environment(name, quota, time.time())
        return self._now(name)

    async def environments(self) -> Sequence[Environment]:
        self.note("environments", None)
        return [self._now(name) for name in sorted(self._environments) if sees(name)]

    async def environment(self, name: str) -> Environment:
        self.note("environment", name)
        return self._now(name)

    async def set_quota(self, name: str, quota: Quota) -> Environment:
        self.note("set_quota", name)
        self._environments[name] = replace(self._now(name), quota=quota)
        return self._now(name)

    async def delete_environment(self, name: str) -> None:
        self.note("delete_environment", name)
        if name == MAIN_ENVIRONMENT:
            raise InvalidRequest("name: the environment 'main' always is; delete another", field="name")
        if self._now(name).usage.sandboxes:
            raise FailedPrecondition(f"sandboxes live in {name!r}; terminate them first")
        del self._environments[name]
        for token in [*self.stored.values()]:
            if token.info.environment == name:
                self._revoke(token)

    def check(self, name: str) -> None:
        """Raises `EnvironmentNotFound` where the caller may know of no such environment."""
        if name not in self._environments or not sees(name):
            raise visibility.no_environment(name)

    def _now(self, name: str) -> Environment:
        self.check(name)
        return replace(self._environments[name], usage=self._usage(name))

    # Tokens

    async def create_token(
        self, name: str, environment: str, scope: Scope, expires_in: float | None
    ) -> tuple[TokenInfo, str]:
        self.note("create_token", name)
        who = caller.get()
        if environment == ANY_ENVIRONMENT:
            if who.environment != ANY_ENVIRONMENT:
                raise PermissionDenied("a token of one environment makes none for all; ask the cluster's administrator")
        else:
            self.check(environment)
        if not who.scope.covers(scope):
            raise PermissionDenied(f"a token of scope {who.scope} makes none of scope {scope}")
        token_id, text, digest = mint()
        now = time.time()
        expires = None if expires_in is None else now + expires_in
        info = TokenInfo(token_id, name, environment, scope, now, expires, created_by=who.token)
        self.stored[token_id] = StoredToken(info, digest)
        return info, text

    async def tokens(self) -> Sequence[TokenInfo]:
        self.note("tokens", None)
        return [token.info for token in reversed(self.stored.values()) if sees(token.info.environment)]

    async def revoke_token(self, token_id: str) -> TokenInfo:
        self.note("revoke_token", token_id)
        token = self.stored.get(token_id)
        if token is None or not sees(token.info.environment):
            raise visibility.no_token(token_id)
        return self._revoke(token)

    def _revoke(self, token: StoredToken) -> TokenInfo:
        info = token.info
        if info.revoked_at is None:
            info = replace(info, revoked_at=time.time())
            self.stored[info.id] = replace(token, info=info)
        return info

    # Looking back

    async def audit(self, before: int | None, limit: int) -> Sequence[AuditEntry]:
        self.note("audit", before)
        return [
            entry
            for entry in reversed(self.entries)
            if (before is None or entry.id < before) and sees(entry.environment)
        ][:limit]

    async def events(
        self, after: int | None, sandbox_id: str | None = None, environment: str | None = None, wait_s: float = 0
    ) -> builtins.list[SandboxEvent]:
        self.note("events", after)
        if environment is not None:
            self.check(environment)
        first = len(self.happened) if after is None else after
        end = time.monotonic() + min(wait_s, 30)
        while True:  # callers come from many loops
            found = [
                event
                for event in self.happened[first:]
                if sandbox_id in (None, event.sandbox_id)
                and environment in (None, event.environment)
                and sees(event.environment)
            ]
            if found or time.monotonic() >= end:
                return found[:_MOST_EVENTS]
            await asyncio.sleep(_TICK_S)

    async def last_event(self) -> int:
        self.note("last_event", None)
        return len(self.happened)

    def happen(self, environment: str, sandbox_id: str, kind: str, **data: Any) -> None:
        """Something happened to a sandbox."""
        self.happened.append(SandboxEvent(len(self.happened) + 1, time.time(), environment, sandbox_id, kind, {**data}))


class FakeReplicaSide:
    """What replicas ask of the cluster in memory. `counters` and `used` are what they reported."""

    def __init__(self, admin: FakeAdmin) -> None:
        self.counters: Counter[Series] = Counter()
        self.used: dict[str, float] = {}
        self._admin = admin

    async def stored_token(self, token_id: str) -> StoredToken | None:
        self._admin.note("stored_token", token_id)
        return self._admin.stored.get(token_id)

    async def report(
        self, audit: Sequence[AuditEntry], counters: Mapping[Series, float], used: Mapping[str, float]
    ) -> None:
        self._admin.note("report", len(audit))
        entries = self._admin.entries
        entries += [replace(entry, id=len(entries) + place) for place, entry in enumerate(audit, 1)]
        self.counters.update(counters)
        self.used.update(used)

    async def metrics(self) -> dict[Series, float]:
        self._admin.note("metrics", None)
        return {Series("shoal_nodes", "gauge", "Nodes", "shoal_nodes"): 1.0, **self.counters}

    async def tunnel_secret(self) -> bytes:
        self._admin.note("tunnel_secret", None)
        return bytes(range(32))
