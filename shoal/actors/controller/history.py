"""Sandboxes wherever they are known: in memory, and of those that ended long ago in the store. Only what the caller may see."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

from shoal.actors.controller.record import SandboxRecord, from_row
from shoal.actors.controller.registry import Registry, matches, position, wants_ended
from shoal.actors.controller.store import Store
from shoal.model.access import Caller
from shoal.model.errors import Internal
from shoal.model.ids import NAME, SANDBOX
from shoal.model.info import Listing
from shoal.model.sight import check_sees_environment, check_sees_sandbox, no_sandbox, no_sandbox_named, sees

_PAGE = 500


@dataclass(slots=True)
class History:
    """All sandboxes of which there is a trace."""

    registry: Registry
    store: Store

    async def get(self, sandbox_id: str, caller: Caller) -> SandboxRecord:
        """The sandbox, living or ended; `SandboxNotFound`, for those of other environments too."""
        record = self.registry.get(sandbox_id)
        if record is None:
            record = await self._stored(sandbox_id)
        check_sees_sandbox(caller, sandbox_id, record.spec.environment)
        return record

    async def find(self, name: str, environment: str, caller: Caller) -> SandboxRecord:
        """The living sandbox of that name, else the last that had it; `SandboxNotFound`."""
        if not sees(caller, environment):
            raise no_sandbox_named(name, environment)
        record = self.registry.find(name, environment)
        if record is None and not self.registry.complete and NAME.fullmatch(name):
            row = await self.store.sandbox_named(name, environment)
            record = None if row is None else _record(row)
        if record is None:
            raise no_sandbox_named(name, environment)
        return record

    async def select(self, listing: Listing, caller: Caller) -> list[SandboxRecord]:
        """Newest first."""
        check_sees_environment(caller, listing.environment)
        found = self.registry.select(listing)
        if self.registry.complete or not wants_ended(listing):
            return found
        # As many of each as are asked for in all: whichever mix of them is the newest is among these.
        found += await self._older(listing)
        return heapq.nlargest(listing.limit, found, key=position)

    async def _stored(self, sandbox_id: str) -> SandboxRecord:
        row = None
        if not self.registry.complete and SANDBOX.fullmatch(sandbox_id):
            row = await self.store.sandbox(sandbox_id)
        if row is None:
            raise no_sandbox(sandbox_id)
        return _record(row)

    async def _older(self, listing: Listing) -> list[SandboxRecord]:
        """Those that are in the store alone."""
        found: list[SandboxRecord] = []
        before = listing.before
        while len(found) < listing.limit:
            rows = await self.store.ended(listing.environment, before, _PAGE)
            records = [_record(row) for row in rows]
            found += [r for r in records if self.registry.get(r.id) is None and matches(r, listing)]
            if len(rows) < _PAGE:
                break
            before = position(records[-1])
        return found[: listing.limit]


def _record(row: dict[str, Any]) -> SandboxRecord:
    try:
        return from_row(row)
    except (KeyError, TypeError, ValueError) as error:
        raise Internal(f"the store's row of sandbox {row.get('id')} makes no sense: {error!r}") from None
