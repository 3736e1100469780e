"""Events as they come, and the audit log, for clients."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shoal.actors.controller.accounts import Accounts
from shoal.actors.controller.events import PAGE
from shoal.actors.controller.history import History
from shoal.actors.controller.record_writer import RecordWriter
from shoal.actors.controller.registry import Registry
from shoal.actors.controller.store import Change, Store
from shoal.model import verbs
from shoal.model.access import ANY_ENVIRONMENT, AuditEntry, Caller, SandboxEvent
from shoal.model.errors import InvalidRequest
from shoal.model.validate import check_number
from shoal.model.verbs import VERBS
from shoal.model.visibility import check_sees_environment

_LONGEST_WAIT_S = 30.0

_WRITTEN_HERE = frozenset(each.audit for each in VERBS.values() if each is not verbs.tunnel_token)
"""The actions that the controller enters in the audit log together with their effect. Replicas report them too; of
theirs only what was refused is new. A connect token has no effect here."""


@dataclass(slots=True)
class EventFeed:
    """Events and audit entries that the caller may see."""

    writer: RecordWriter
    registry: Registry
    history: History
    accounts: Accounts
    store: Store

    async def events(
        self, after: int | None, sandbox_id: str | None, environment: str | None, wait_s: float, caller: Caller
    ) -> list[SandboxEvent]:
        """Events with an id above `after` (None: from now on), oldest first, at most 1,000; waits up to `wait_s` (30 at
        most) for the first."""
        if environment is not None:
            check_sees_environment(caller, environment)
        elif caller.environment != ANY_ENVIRONMENT:
            environment = caller.environment
        if sandbox_id is not None:
            await self.history.get(sandbox_id, caller)
        if after is not None:
            _check_id("after", after)
        log = self.writer.events
        after = log.last if after is None else after
        end = time.monotonic() + min(wait_s, _LONGEST_WAIT_S)
        while True:
            # Only events since the last turn are searched.
            horizon = log.last
            found = log.since(after, environment=environment, sandbox_id=sandbox_id)
            if found is None:
                found = await self._stored(after, sandbox_id, environment, horizon)
            left = end - time.monotonic()
            if found or left <= 0:
                return found
            after = max(after, horizon)
            if log.last == horizon and not await log.wait(environment, sandbox_id, left):
                return []

    async def _stored(
        self, after: int, sandbox_id: str | None, environment: str | None, horizon: int
    ) -> list[SandboxEvent]:
        found = await self.store.events(after, PAGE, environment=environment, sandbox_id=sandbox_id)
        return [event for event in found if event.id <= horizon]

    async def audit(self, before: int | None, limit: int, caller: Caller) -> list[AuditEntry]:
        """Who did what, newest first, with an id below `before`."""
        check_number("limit", limit, 0, 1000, "entries", whole=True)
        if before is not None:
            _check_id("before", before)
        environment = None if caller.environment == ANY_ENVIRONMENT else caller.environment
        return await self.store.audit(before, limit, environment=environment)

    def last_event(self, caller: Caller) -> int:
        """The id of the newest event."""
        return self.writer.events.last

    async def report(self, audit: Sequence[AuditEntry], used: Mapping[str, float]) -> None:
        """Takes the report of a replica: entries for the audit log, and which tokens were used.

        What was done to a sandbox is entered under its environment, even if the caller has access to all: the
        administrators of that environment must see it.
        """
        tokens = self.accounts.used(used)
        new = [
            replace(entry, id=0, environment=self._environment(entry))
            for entry in audit
            if entry.outcome != "ok" or entry.action not in _WRITTEN_HERE
        ]
        if new or tokens:
            await self.writer.write(Change(audit=new, tokens=tokens))

    def _environment(self, entry: AuditEntry) -> str:
        """The environment in which it was done: the replica knows the caller's, the controller the sandbox's."""
        if entry.environment != ANY_ENVIRONMENT or entry.target is None:
            return entry.environment
        record = self.registry.get(entry.target)
        return entry.environment if record is None else record.spec.environment


def _check_id(field: str, value: Any) -> None:
    """An event's or an entry's id, or 0."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise InvalidRequest(f"{field}: {value!r:.80} is not an id; pass one on as you got it", field=field)
