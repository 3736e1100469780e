"""The store contract: what must outlive the controller, and is written before the controller acts on it.

Terms
    row       a sandbox in JSON-ready form (`record.to_row`); the store takes its columns for queries from it.
    state     what a controller resumes when it starts: living sandboxes, the newest ended ones, environments, tokens,
              cordons of nodes, pools, images, secrets, volumes.

Rules for every store
    - `write` returns once all of it is on disk, as one transaction. Concurrent writes may share one commit.
      It raises `Unavailable` if nothing was written. If a database went away while it committed, and did not come back
      within half a minute, the outcome is not known: the error's `outcome` is "unknown". Either way the write may be
      made again.
    - One controller writes to a store. `open` fences off an earlier controller: its writes are refused from then on
      (`FailedPrecondition`, in the state "overtaken"). Nodes refuse it, too, by the `epoch` of the later one.
    - A store belongs to one cluster: `open` for another cluster raises `FailedPrecondition`.
    - Methods never block the loop.

The implementation is `shoal.cluster.store` (SQLite or PostgreSQL); the actors are given one and never import it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.model.access import AuditEntry, Environment, SandboxEvent, StoredToken
from shoal.model.images import ImageRecord
from shoal.model.info import Cordon, PageCursor
from shoal.model.pools import PoolInfo
from shoal.model.secrets import StoredSecret
from shoal.model.usage import Amounts, UsageRow
from shoal.model.volumes import VolumeInfo


@dataclass(frozen=True, slots=True)
class Restored:
    """The state of a store when it was opened. `sandboxes`: rows of all living ones and the newest ended ones, oldest
    first; `complete`: the store has no others. `epoch`: of the controller that opened it, above all before."""

    sandboxes: list[dict[str, Any]] = field(default_factory=list)
    environments: list[Environment] = field(default_factory=list)
    tokens: list[StoredToken] = field(default_factory=list)
    cordons: list[Cordon] = field(default_factory=list)
    pools: list[PoolInfo] = field(default_factory=list)
    images: list[ImageRecord] = field(default_factory=list)
    secrets: list[StoredSecret] = field(default_factory=list)
    volumes: list[VolumeInfo] = field(default_factory=list)
    last_event: int = 0
    complete: bool = True
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class HourOfUse:
    """What sandboxes of an environment used in an hour (since 1970): those with one value of a tag or, both empty, all
    of them."""

    hour: int
    environment: str
    tag: str
    value: str
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class Change:
    """A set of changes to write together. Sandboxes, environments, tokens, cordons, pools, images, secrets
    and volumes replace those with the same id or name, sums of use those of the same hour."""

    sandboxes: Sequence[dict[str, Any]] = ()
    events: Sequence[SandboxEvent] = ()
    audit: Sequence[AuditEntry] = ()
    environments: Sequence[Environment] = ()
    tokens: Sequence[StoredToken] = ()
    removed_environments: Sequence[str] = ()
    removed_tokens: Sequence[str] = ()
    cordons: Sequence[Cordon] = ()
    removed_cordons: Sequence[str] = ()
    pools: Sequence[PoolInfo] = ()
    removed_pools: Sequence[str] = ()
    images: Sequence[ImageRecord] = ()
    removed_images: Sequence[str] = ()
    secrets: Sequence[StoredSecret] = ()
    removed_secrets: Sequence[str] = ()
    usage: Sequence[HourOfUse] = ()
    volumes: Sequence[VolumeInfo] = ()
    removed_volumes: Sequence[str] = ()


class Store(ABC):
    """Stores what a cluster knows. See the module for the rules."""

    @abstractmethod
    async def open(self, cluster: str, history: int) -> Restored:
        """Opens the store for the cluster of that id, updates its schema, and returns its state with up to `history`
        ended sandboxes; fewer if they are large."""

    @abstractmethod
    def write(self, change: Change) -> asyncio.Future[None]:
        """Begins to write all of `change`, and is done once it is written; `Unavailable` if nothing was. Who cancels
        it takes nothing back. No coroutine: that would need a task, and there are a thousand writes each second."""

    @abstractmethod
    async def sandbox(self, sandbox_id: str) -> dict[str, Any] | None:
        """The row of a sandbox, however long ago it ended, if it is still stored."""

    @abstractmethod
    async def sandbox_named(self, name: str, environment: str) -> dict[str, Any] | None:
        """The row of the last sandbox that had that name."""

    @abstractmethod
    async def sandbox_keyed(self, key: str, environment: str) -> dict[str, Any] | None:
        """The row of the last sandbox that was created with that idempotency key."""

    @abstractmethod
    async def ended(self, environment: str | None, before: PageCursor | None, limit: int) -> list[dict[str, Any]]:
        """Rows of ended sandboxes, newest first by (created_at, id), starting after `before`, of one environment or
        (None) of all. No other filter: a page must cost no more than its rows."""

    @abstractmethod
    async def events(
        self, after: int, limit: int, *, environment: str | None = None, sandbox_id: str | None = None
    ) -> list[SandboxEvent]:
        """Events with an id above `after`, oldest first."""

    @abstractmethod
    async def audit(self, before: int | None, limit: int, *, environment: str | None = None) -> list[AuditEntry]:
        """The newest entries, newest first, with an id below `before`."""

    @abstractmethod
    async def was_deleted(self, environment: str) -> bool:
        """Whether an environment of that name was deleted so lately that the store may still know what happened in
        it."""

    @abstractmethod
    async def hours_of_use(self, first: int) -> list[HourOfUse]:
        """The sums of use of that hour and all later ones."""

    @abstractmethod
    async def usage(
        self, by: str, tag: str | None, first: int, last: int, environment: str | None, limit: int
    ) -> list[UsageRow]:
        """The sums of use from one hour to another, both included, of one environment or (None) of all: by
        `environment`, `day` or `hour`, or (`tag`) by the values of a tag. By time, or the longest first."""

    @abstractmethod
    async def expire_usage(self, before: int) -> int:
        """Forgets the sums of use of hours before that one; returns how many rows."""

    @abstractmethod
    async def expire(self, before: float) -> int:
        """Forgets sandboxes that ended, events and audit entries from before that time; returns how many rows. Also
        forgets tokens that were revoked or expired before it."""

    @abstractmethod
    async def close(self) -> None:
        """Closes the store. Idempotent."""
