"""Which sandboxes a listing includes, and in which order. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from itertools import islice

from shoal.actors.controller.record import SandboxRecord
from shoal.model.info import Listing, PageCursor
from shoal.model.sorting import NEWEST, OLDEST, place_of, value_by
from shoal.model.states import TERMINAL


def position(record: SandboxRecord) -> PageCursor:
    """Its position in a listing by time."""
    return record.created_at, record.id


def by_time(listing: Listing) -> bool:
    return listing.sort in (NEWEST, OLDEST)


def wants_ended(listing: Listing) -> bool:
    return listing.include_ended or any(state in TERMINAL for state in listing.states)


def matches(record: SandboxRecord, listing: Listing) -> bool:
    """Whether a listing includes it, on whichever page; the caller decides about ended ones."""
    return (
        not record.hidden
        and record.spec.environment == listing.environment
        and (not listing.states or record.state in listing.states)
        and (listing.region is None or listing.region in record.spec.regions)
        and (listing.image is None or listing.image == record.spec.image)
        and (not listing.tags or all(record.tags.get(key) == value for key, value in listing.tags.items()))
        and (listing.search is None or _is_found(record, listing.search.casefold()))
    )


def page_of(records: Iterable[SandboxRecord], listing: Listing) -> list[SandboxRecord]:
    """A page of the records that match. Those of a listing by time come in its order, from where it goes on."""
    matching = (record for record in records if matches(record, listing))
    if by_time(listing):
        return list(islice(matching, listing.limit))
    backwards = listing.sort.startswith("-")
    value = value_by(listing.sort)
    found = ((value(record), record.created_at, record.id, record) for record in matching)
    if listing.before is not None:
        end = place_of(listing.before)
        found = (each for each in found if (each[:3] < end if backwards else each[:3] > end))
    first = heapq.nlargest if backwards else heapq.nsmallest
    return [each[3] for each in first(listing.limit, found)]


def _is_found(record: SandboxRecord, text: str) -> bool:
    spec = record.spec
    told = (record.id, spec.name or "", spec.image, *(f"{key}:{value}" for key, value in record.tags.items()))
    return any(text in part.casefold() for part in told)
