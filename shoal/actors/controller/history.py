"""Looks sandboxes up in memory and, if they ended long ago, in the store. Returns only what the caller may see."""

from __future__ import annotations

import heapq
import logging
from dataclasses import dataclass
from typing import Any

from shoal.actors.controller.listing import matches, position, wants_ended
from shoal.actors.controller.record import SandboxRecord, from_row
from shoal.actors.controller.registry import Registry
from shoal.actors.controller.store import Store
from shoal.model.access import Caller
from shoal.model.errors import Internal
from shoal.model.ids import NAME, SANDBOX
from shoal.model.info import Listing, PageCursor, SortedCursor
from shoal.model.sorting import NEWEST, check_cursor, check_sort
from shoal.model.spec import SandboxSpec
from shoal.model.visibility import check_sees_environment, check_sees_sandbox, no_sandbox, no_sandbox_named, sees

log = logging.getLogger("shoal.history")

_PAGE = 100
_PAGES = 20
"""Pages of the store that one call reads. A rare match may take several calls, so that other callers have their
turn."""


@dataclass(slots=True)
class History:
    """All sandboxes that memory or the store knows."""

    registry: Registry
    store: Store

    async def get(self, sandbox_id: str, caller: Caller) -> SandboxRecord:
        """The sandbox, living or ended; `SandboxNotFound`, also for other environments."""
        record = self.registry.get(sandbox_id)
        if record is None:
            record = await self._stored(sandbox_id)
        check_sees_sandbox(caller, sandbox_id, record.spec.environment)
        return record

    async def find(self, name: str, environment: str, caller: Caller) -> SandboxRecord:
        """The living sandbox of that name, else the last that had the name; `SandboxNotFound`."""
        if not sees(caller, environment):
            raise no_sandbox_named(name, environment)
        record = self.registry.find(name, environment)
        if record is None and not self.registry.complete and NAME.fullmatch(name):
            row = await self.store.sandbox_named(name, environment)
            record = None if row is None else _record(row)
        if record is None:
            raise no_sandbox_named(name, environment)
        return record

    async def select(self, listing: Listing, caller: Caller) -> tuple[list[SandboxRecord], SortedCursor | None]:
        """In its order, and where the search stopped, if that was before the end of the listing (`Page.reached`)."""
        check_sees_environment(caller, listing.environment)
        check_sort(listing.sort)
        check_cursor(listing.before, listing.sort)
        found = self.registry.select(listing)
        if self.registry.complete or not wants_ended(listing) or listing.sort != NEWEST:
            return found, None
        return await self._with_older(found, listing)

    def may_have_forgotten(self, spec: SandboxSpec) -> bool:
        """Whether only the store may know of an earlier create with the same idempotency key."""
        key = spec.idempotency_key
        return key is not None and not self.registry.complete and self.registry.keyed(spec.environment, key) is None

    async def forgotten(self, spec: SandboxSpec) -> SandboxRecord | None:
        """The sandbox that was created with the same idempotency key, if memory has forgotten it."""
        if spec.idempotency_key is None or not self.may_have_forgotten(spec):
            return None
        row = await self.store.sandbox_keyed(spec.idempotency_key, spec.environment)
        record = None if row is None else _record(row)
        # For a sandbox in memory, memory is right.
        known = record is None or record.released or not record.ended or self.registry.get(record.id) is not None
        return None if known else record

    async def _stored(self, sandbox_id: str) -> SandboxRecord:
        row = None
        if not self.registry.complete and SANDBOX.fullmatch(sandbox_id):
            row = await self.store.sandbox(sandbox_id)
        if row is None:
            raise no_sandbox(sandbox_id)
        return _record(row)

    async def _with_older(
        self, found: list[SandboxRecord], listing: Listing
    ) -> tuple[list[SandboxRecord], PageCursor | None]:
        """Adds those that only the store has."""
        known = {record.id for record in found}
        before = None if listing.before is None else listing.before[:2]
        reached = None
        for page in range(1, _PAGES + 1):
            rows = await self.store.ended(listing.environment, before, _PAGE)
            records = [record for row in rows if (record := _valid_record(row)) is not None]
            found += [r for r in records if r.id not in known and not self.registry.get(r.id) and matches(r, listing)]
            if len(rows) < _PAGE:
                break
            before = rows[-1]["created_at"], rows[-1]["id"]
            newer = [record for record in found if position(record) >= before]
            if len(newer) >= listing.limit:
                break  # all further rows are older than what is wanted
            if page == _PAGES:
                found, reached = newer, before
        return heapq.nlargest(listing.limit, found, key=position), reached


def _valid_record(row: dict[str, Any]) -> SandboxRecord | None:
    """None if the row is invalid: it must not keep the others from being listed."""
    try:
        return _record(row)
    except Internal as error:
        log.warning("%s", error)
        return None


def _record(row: dict[str, Any]) -> SandboxRecord:
    try:
        return from_row(row)
    except (KeyError, TypeError, ValueError) as error:
        raise Internal(f"the store's row of sandbox {row.get('id')} makes no sense: {error!r}") from None
