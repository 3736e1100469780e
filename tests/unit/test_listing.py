"""The order of a listing, page after page: while sandboxes change, come and go, none is told twice or left out."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise

import pytest

from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.registry import Registry
from shoal.model.cursors import MAX_SORTED, decode_sorted, encode_cursor
from shoal.model.errors import InvalidRequest
from shoal.model.info import Listing
from shoal.model.sorting import NEWEST, SORTS, check_cursor, check_sort, cursor_at, place_of
from tests.unit.builders import spec


def record(number: int) -> SandboxRecord:
    image = "\U0001f41f" * 100 if number % 3 else "shoal/base"
    wanted = spec(
        name=f"n{number % 10}-{number}" if number % 2 else None, image=image, regions=("eu", "us")[: number % 3]
    )
    return SandboxRecord(f"sb-{number}", wanted, float(number // 4), {})


def registry(count: int) -> Registry:
    filled = Registry(10)
    for number in range(count):
        filled.add(record(number))
    return filled


@pytest.mark.parametrize("sort", SORTS)
def test_pages_are_in_order_and_each_sandbox_is_on_one(sort: str) -> None:
    filled = registry(50)
    listing, found = Listing(sort=sort, limit=7), []
    for page in range(20):
        part = filled.select(listing)
        found += part
        if not part:
            break
        cursor = encode_cursor(cursor_at(part[-1], sort))
        assert len(cursor) <= MAX_SORTED
        if page == 2:
            filled.retract(part[-1])  # a page goes on behind a sandbox that is gone
        listing = replace(listing, before=decode_sorted(cursor))
        check_cursor(listing.before, sort)
    places = [place_of(cursor_at(each, sort)) for each in found]
    assert len({each.id for each in found}) == len(found) == 50
    assert all(a > b if sort.startswith("-") else a < b for a, b in pairwise(places))


def test_what_is_no_order_and_a_cursor_of_another_order_are_refused() -> None:
    for sort in ("size", "--name", "", "Name"):
        with pytest.raises(InvalidRequest, match="created, name, state, image, region, cpu, memory"):
            check_sort(sort)
    for cursor, sort in (((1.0, "sb-1"), "name"), ((1.0, "sb-1", "a"), NEWEST), ((1.0, "sb-1", "a"), "-cpu")):
        with pytest.raises(InvalidRequest, match="another order"):
            check_cursor(cursor, sort)


def test_ten_thousand_are_sorted_quickly() -> None:
    filled = registry(10_000)
    listing = Listing(sort="name", limit=101)
    began = time.process_time()
    first = filled.select(listing)
    middle = replace(listing, before=cursor_at(first[-1], "name"))
    assert len(filled.select(middle)) == 101
    assert time.process_time() - began < 1.0  # 0.02 s where nothing else runs
