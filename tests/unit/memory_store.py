"""A store in memory that outlives the controllers of a test: what was written is there for the next, as it came out of JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.actors.controller.store import Change, Restored, Store
from shoal.model.access import AuditEntry, Environment, SandboxEvent, StoredToken
from shoal.model.errors import Unavailable
from shoal.model.states import State


@dataclass
class Disk:
    """What is written. `full`: nothing can be."""

    sandboxes: dict[str, str] = field(default_factory=dict)
    environments: dict[str, Environment] = field(default_factory=dict)
    tokens: dict[str, StoredToken] = field(default_factory=dict)
    events: list[SandboxEvent] = field(default_factory=list)
    audit: list[AuditEntry] = field(default_factory=list)
    writes: int = 0
    full: bool = False

    def put(self, row: dict[str, Any]) -> None:
        """As if a controller had written it."""
        self.sandboxes[row["id"]] = json.dumps(row)

    def row(self, sandbox_id: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.sandboxes[sandbox_id])
        return loaded


class MemoryStore(Store):
    """One controller's way to a `Disk`. `die`: from now on nothing reaches it, and nothing returns, as after SIGKILL. `looks`: how often what
    ended was asked for."""

    def __init__(self, disk: Disk, die_after: int | None = None) -> None:
        self.disk = disk
        self._die_after = die_after
        self.looks = 0

    async def open(self, cluster: str, history: int) -> Restored:
        rows = sorted(self._rows(), key=lambda row: (row["created_at"], row["id"]))
        gone = [row for row in rows if row["end"] is not None][:-history] if history else []
        return Restored(
            [row for row in rows if row not in gone],
            list(self.disk.environments.values()),
            list(self.disk.tokens.values()),
            max((event.id for event in self.disk.events), default=0),
        )

    async def write(self, change: Change) -> None:
        rows = {row["id"]: json.dumps(row) for row in change.sandboxes}
        await asyncio.sleep(0)
        if self._die_after is not None:
            if self._die_after == 0:
                await asyncio.get_running_loop().create_future()
            self._die_after -= 1
        if self.disk.full:
            raise Unavailable("the disk is full; nothing was done")
        self.disk.writes += 1
        self.disk.sandboxes |= rows
        self.disk.events += change.events
        self.disk.audit += change.audit
        self.disk.environments |= {environment.name: environment for environment in change.environments}
        for name in change.removed_environments:
            self.disk.environments.pop(name, None)
        self.disk.tokens |= {token.info.id: token for token in change.tokens}
        for token_id in change.removed_tokens:
            self.disk.tokens.pop(token_id, None)

    def die(self) -> None:
        self._die_after = 0

    async def sandbox(self, sandbox_id: str) -> dict[str, Any] | None:
        return self.disk.row(sandbox_id) if sandbox_id in self.disk.sandboxes else None

    async def sandbox_named(self, name: str, environment: str) -> dict[str, Any] | None:
        return self._last("name", name, environment)

    async def sandbox_keyed(self, key: str, environment: str) -> dict[str, Any] | None:
        return self._last("idempotency_key", key, environment)

    async def ended(
        self, environment: str | None, before: tuple[float, str] | None, limit: int, *, states: Sequence[State] = ()
    ) -> list[dict[str, Any]]:
        self.looks += 1
        found = [
            row
            for row in self._rows()
            if row["end"] is not None
            and environment in (None, row["spec"]["environment"])
            and (before is None or (row["created_at"], row["id"]) < before)
            and (not states or row["state"] in states)
        ]
        return sorted(found, key=lambda row: (row["created_at"], row["id"]), reverse=True)[:limit]

    async def events(
        self, after: int, limit: int, *, environment: str | None = None, sandbox_id: str | None = None
    ) -> list[SandboxEvent]:
        return [
            event
            for event in sorted(self.disk.events, key=lambda event: event.id)
            if event.id > after and environment in (None, event.environment) and sandbox_id in (None, event.sandbox_id)
        ][:limit]

    async def audit(self, before: int | None, limit: int, *, environment: str | None = None) -> list[AuditEntry]:
        return [entry for entry in reversed(self.disk.audit) if environment in (None, entry.environment)][:limit]

    async def was_deleted(self, environment: str) -> bool:
        deletion = ("environment.delete", "ok", environment)
        return any((entry.action, entry.outcome, entry.environment) == deletion for entry in self.disk.audit)

    async def expire(self, before: float) -> int:
        return 0

    async def close(self) -> None:
        pass

    def _last(self, what: str, value: str, environment: str) -> dict[str, Any] | None:
        found = [r for r in self._rows() if (r["spec"][what], r["spec"]["environment"]) == (value, environment)]
        return max(found, key=lambda row: (row["created_at"], row["id"]), default=None)

    def _rows(self) -> list[dict[str, Any]]:
        return [json.loads(row) for row in self.disk.sandboxes.values()]
