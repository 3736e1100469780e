"""A store in memory that outlives the controllers of a test: what was written is there for the next, as it came out of
JSON.

It passes the contract's suite in `tests/contract/store`. Whoever wants an answer lost or a write held up overrides
`_write`.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from shoal.actors.controller.store import Change, HourOfUse, Restored, Store
from shoal.cluster.store.rows import text
from shoal.cluster.store.usage import row_told
from shoal.model.access import AuditEntry, Environment, SandboxEvent, StoredToken
from shoal.model.errors import FailedPrecondition, Internal, Unavailable
from shoal.model.images import ImageRecord
from shoal.model.info import Cordon
from shoal.model.pools import PoolInfo
from shoal.model.secrets import StoredSecret
from shoal.model.usage import Amounts, UsageRow
from shoal.model.volumes import VolumeInfo


@dataclass
class Disk:
    """What is written. `full`: nothing can be. `epoch`: which of those that opened it may write, the last one."""

    sandboxes: dict[str, str] = field(default_factory=dict)
    environments: dict[str, Environment] = field(default_factory=dict)
    tokens: dict[str, StoredToken] = field(default_factory=dict)
    cordons: dict[str, Cordon] = field(default_factory=dict)
    pools: dict[str, PoolInfo] = field(default_factory=dict)
    images: dict[str, ImageRecord] = field(default_factory=dict)
    secrets: dict[str, StoredSecret] = field(default_factory=dict)
    usage: dict[tuple[int, str, str, str], HourOfUse] = field(default_factory=dict)
    volumes: dict[str, VolumeInfo] = field(default_factory=dict)
    events: list[SandboxEvent] = field(default_factory=list)
    audit: list[AuditEntry] = field(default_factory=list)
    cluster: str | None = None
    epoch: int = 0
    last_event: int = 0
    last_entry: int = 0
    writes: int = 0
    full: bool = False

    def put(self, row: dict[str, Any]) -> None:
        """As if a controller had written it."""
        self.sandboxes[row["id"]] = json.dumps(row)

    def row(self, sandbox_id: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.sandboxes[sandbox_id])
        return loaded

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(row) for row in self.sandboxes.values()]


class MemoryStore(Store):
    """One controller's way to a `Disk`.

    `die`: from now on nothing reaches it, and nothing returns, as after SIGKILL. `looks`: how often what ended was
    asked for.
    """

    def __init__(self, disk: Disk, die_after: int | None = None) -> None:
        self.disk = disk
        self._die_after = die_after
        self._epoch: int | None = None
        self.looks = 0

    async def open(self, cluster: str, history: int) -> Restored:
        if self.disk.cluster not in (None, cluster):
            raise FailedPrecondition("the store is that of another cluster; give each cluster a database of its own")
        self.disk.cluster = cluster
        self.disk.epoch = self._epoch = self.disk.epoch + 1
        rows = sorted(self.disk.rows(), key=_age)
        gone = [row for row in rows if row["end"] is not None]
        newest = gone[-history:] if history else []
        return Restored(
            sorted([row for row in rows if row["end"] is None] + newest, key=_age),
            list(self.disk.environments.values()),
            list(self.disk.tokens.values()),
            list(self.disk.cordons.values()),
            list(self.disk.pools.values()),
            list(self.disk.images.values()),
            list(self.disk.secrets.values()),
            list(self.disk.volumes.values()),
            self.disk.last_event,
            complete=len(newest) < history,
            epoch=self.disk.epoch,
        )

    def write(self, change: Change) -> asyncio.Future[None]:
        rows = {row["id"]: json.dumps(row) for row in change.sandboxes}
        return asyncio.shield(asyncio.create_task(self._write(change, rows)))  # whoever gives up takes nothing back

    async def _write(self, change: Change, rows: dict[str, str]) -> None:
        if self._die_after is not None:
            if self._die_after == 0:
                await asyncio.get_running_loop().create_future()
            self._die_after -= 1
        self._check_may_write()
        if self.disk.full:
            raise Unavailable("the disk is full; nothing was done")
        for row in change.sandboxes:
            if abs((row["end"] or {}).get("returncode") or 0) >= 1 << 63:
                raise Internal("the store takes no such value")
        disk = self.disk
        disk.writes += 1
        disk.sandboxes |= rows
        new = {event.id for event in change.events}
        disk.events = [event for event in disk.events if event.id not in new] if new else disk.events
        disk.events += change.events
        disk.last_event = max(disk.last_event, *new, 0)
        for entry in change.audit:
            disk.last_entry += 1
            disk.audit.append(_entry(entry, disk.last_entry))
        disk.environments |= {environment.name: environment for environment in change.environments}
        for name in change.removed_environments:
            disk.environments.pop(name, None)
        disk.tokens |= {token.info.id: token for token in change.tokens}
        for token_id in change.removed_tokens:
            disk.tokens.pop(token_id, None)
        disk.cordons |= {cordon.node_id: cordon for cordon in change.cordons}
        for node_id in change.removed_cordons:
            disk.cordons.pop(node_id, None)

        disk.pools |= {pool.id: pool for pool in change.pools}
        for pool_id in change.removed_pools:
            disk.pools.pop(pool_id, None)
        disk.images |= {image.id: image for image in change.images}
        for image_id in change.removed_images:
            disk.images.pop(image_id, None)
        disk.secrets |= {secret.info.id: secret for secret in change.secrets}
        for secret_id in change.removed_secrets:
            disk.secrets.pop(secret_id, None)
        for use in change.usage:
            kept = replace(use, tag=text(use.tag), value=text(use.value), amounts=replace(use.amounts))
            disk.usage[use.hour, use.environment, kept.tag, kept.value] = kept
        disk.volumes |= {volume.id: volume for volume in change.volumes}
        for volume_id in change.removed_volumes:
            disk.volumes.pop(volume_id, None)

    def die(self) -> None:
        self._die_after = 0

    async def sandbox(self, sandbox_id: str) -> dict[str, Any] | None:
        return self.disk.row(sandbox_id) if sandbox_id in self.disk.sandboxes else None

    async def sandbox_named(self, name: str, environment: str) -> dict[str, Any] | None:
        return self._last("name", name, environment)

    async def sandbox_keyed(self, key: str, environment: str) -> dict[str, Any] | None:
        return self._last("idempotency_key", key, environment)

    async def ended(
        self, environment: str | None, before: tuple[float, str] | None, limit: int
    ) -> list[dict[str, Any]]:
        self.looks += 1
        found = [
            row
            for row in self.disk.rows()
            if row["end"] is not None
            and environment in (None, row["spec"]["environment"])
            and (before is None or _age(row) < before)
        ]
        return sorted(found, key=_age, reverse=True)[:limit]

    async def events(
        self, after: int, limit: int, *, environment: str | None = None, sandbox_id: str | None = None
    ) -> list[SandboxEvent]:
        return [
            event
            for event in sorted(self.disk.events, key=lambda event: event.id)
            if event.id > after and environment in (None, event.environment) and sandbox_id in (None, event.sandbox_id)
        ][:limit]

    async def audit(self, before: int | None, limit: int, *, environment: str | None = None) -> list[AuditEntry]:
        return [
            entry
            for entry in reversed(self.disk.audit)
            if environment in (None, entry.environment) and (before is None or entry.id < before)
        ][:limit]

    async def was_deleted(self, environment: str) -> bool:
        deletion = ("environment.delete", "ok", environment)
        return any((entry.action, entry.outcome, entry.environment) == deletion for entry in self.disk.audit)

    async def hours_of_use(self, first: int) -> list[HourOfUse]:
        return [replace(use, amounts=replace(use.amounts)) for use in self.disk.usage.values() if use.hour >= first]

    async def usage(
        self, by: str, tag: str | None, first: int, last: int, environment: str | None, limit: int
    ) -> list[UsageRow]:
        sums: dict[Any, Amounts] = {}
        for use in self.disk.usage.values():
            if first <= use.hour <= last and use.tag == (tag or "") and environment in (None, use.environment):
                key = {"environment": use.environment, "day": use.hour // 24, "hour": use.hour}.get(by, use.value)
                sums.setdefault(key, Amounts()).add(use.amounts)
        by_time = by in ("day", "hour")
        ordered = sorted(sums.items(), key=lambda each: each[0] if by_time else (-each[1].seconds, each[0]))
        return [row_told(by, SimpleNamespace(key=key, **asdict(amounts))) for key, amounts in ordered[:limit]]

    async def expire_usage(self, before: int) -> int:
        old = [key for key in self.disk.usage if key[0] < before]
        for key in old:
            del self.disk.usage[key]
        return len(old)

    async def expire(self, before: float) -> int:
        self._check_may_write()
        disk, there = self.disk, self._count()
        disk.sandboxes = {
            row["id"]: disk.sandboxes[row["id"]]
            for row in disk.rows()
            if row["end"] is None or row["end"]["ended_at"] >= before
        }
        disk.events = [event for event in disk.events if event.at >= before]
        disk.audit = [entry for entry in disk.audit if entry.at >= before]
        disk.tokens = {
            token_id: token
            for token_id, token in disk.tokens.items()
            if all(at is None or at >= before for at in (token.info.revoked_at, token.info.expires_at))
        }
        return there - self._count()

    async def close(self) -> None:
        self._epoch = None

    def _check_may_write(self) -> None:
        if self._epoch is None:
            raise FailedPrecondition("the store is not open; open it first")
        if self._epoch != self.disk.epoch:
            raise FailedPrecondition("another controller has taken the store over", state="overtaken")

    def _count(self) -> int:
        return sum(map(len, (self.disk.sandboxes, self.disk.events, self.disk.audit, self.disk.tokens)))

    def _last(self, what: str, value: str, environment: str) -> dict[str, Any] | None:
        found = [r for r in self.disk.rows() if (r["spec"][what], r["spec"]["environment"]) == (value, environment)]
        return max(found, key=_age, default=None)


def _age(row: dict[str, Any]) -> tuple[float, str]:
    return row["created_at"], row["id"]


def _entry(entry: AuditEntry, number: int) -> AuditEntry:
    kept = {name: text(value) for name in ("target", "request_id", "address") if (value := getattr(entry, name))}
    return replace(entry, id=number, **kept)
