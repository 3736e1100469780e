"""The store contract: what must outlive the controller, and is written before the controller acts on it.

Terms
    row       a sandbox in JSON-ready form (`record.to_row`); its columns for queries are taken out of it by the store.
    state     what a controller takes up when it starts: living sandboxes and the newest that ended, environments, tokens.

Rules for every store
    - A `write` returns once all of it is on disk, as one transaction; what several callers write at the same time may share one commit.
      It raises `Unavailable` where nothing of it was written. Only where a database went away while it committed, and did not come back
      within half a minute, the error says that this is not known (its `outcome` is "unknown"); the same write may be made again in either case.
    - One controller writes to a store. `open` takes it over: an earlier controller that still writes is refused from then on
      (`FailedPrecondition`, in the state "overtaken").
    - A store belongs to one cluster: `open` of one that is another cluster's raises `FailedPrecondition`.
    - Methods are async and block no loop.

The implementation is `shoal.cluster.store` (SQLite or PostgreSQL); the actors get it handed in and never import it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.model.access import AuditEntry, Environment, SandboxEvent, StoredToken
from shoal.model.info import PageCursor


@dataclass(frozen=True, slots=True)
class Restored:
    """What a store held when it was opened. `sandboxes`: rows of all that live and of the newest that ended, oldest first; `complete`: these
    are all that it holds."""

    sandboxes: list[dict[str, Any]] = field(default_factory=list)
    environments: list[Environment] = field(default_factory=list)
    tokens: list[StoredToken] = field(default_factory=list)
    last_event: int = 0
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Change:
    """What is written together. Sandboxes, environments and tokens replace what has their id or name."""

    sandboxes: Sequence[dict[str, Any]] = ()
    events: Sequence[SandboxEvent] = ()
    audit: Sequence[AuditEntry] = ()
    environments: Sequence[Environment] = ()
    tokens: Sequence[StoredToken] = ()
    removed_environments: Sequence[str] = ()
    removed_tokens: Sequence[str] = ()


class Store(ABC):
    """Where a cluster keeps what it knows. See the module for the rules."""

    @abstractmethod
    async def open(self, cluster: str, history: int) -> Restored:
        """Opens it for the cluster of that id, brings its schema up to date, and returns its state with up to `history` ended sandboxes;
        fewer, where these are large."""

    @abstractmethod
    async def write(self, change: Change) -> None:
        """Writes all of `change`, or raises `Unavailable` and has written nothing of it."""

    @abstractmethod
    async def sandbox(self, sandbox_id: str) -> dict[str, Any] | None:
        """The row of a sandbox, however long ago it ended, if it is still kept."""

    @abstractmethod
    async def sandbox_named(self, name: str, environment: str) -> dict[str, Any] | None:
        """The row of the last sandbox that had that name."""

    @abstractmethod
    async def sandbox_keyed(self, key: str, environment: str) -> dict[str, Any] | None:
        """The row of the last sandbox that was created with that idempotency key."""

    @abstractmethod
    async def ended(self, environment: str | None, before: PageCursor | None, limit: int) -> list[dict[str, Any]]:
        """Rows of ended sandboxes, newest first by (created_at, id), from `before` on, of one environment or (None) of all. No other
        filter: a page must cost no more than its rows."""

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
        """Whether an environment of that name was deleted so lately that what happened in it may still be kept."""

    @abstractmethod
    async def expire(self, before: float) -> int:
        """Forgets sandboxes that ended, events and audit entries from before that moment; how many rows. Tokens that were revoked or expired
        before it go too."""

    @abstractmethod
    async def close(self) -> None:
        """Closes it. Again is harmless."""
