"""A writer that is killed: what was acknowledged is there, and nothing is half there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from tests.contract.store.conftest import CLUSTER, SQL, StoreLocation
from tests.contract.store.crashing_writer import PARTS

pytestmark = pytest.mark.anyio


@SQL
@pytest.mark.parametrize("acknowledged_first", [1, 200, 700])
async def test_a_writer_killed_in_the_middle_has_lost_nothing_and_left_nothing_half(
    location: StoreLocation, acknowledged_first: int
) -> None:
    acknowledged = _written_until_killed(location, acknowledged_first)
    store = location.store()
    try:
        restored = await store.open(CLUSTER, 10)
        parts = Counter(row["id"].split("-")[1] for row in restored.sandboxes)
        events = Counter(e.sandbox_id.split("-")[1] for e in await store.events(0, 1_000_000))
        audit = Counter((e.target or "").split("-")[1] for e in await store.audit(None, 1_000_000))
    finally:
        await store.close()
    assert set(parts.values()) == {PARTS}
    assert parts == events == audit
    assert acknowledged <= parts.keys()
    assert restored.last_event == max(e * PARTS + PARTS for e in map(int, parts))


def _written_until_killed(location: StoreLocation, count: int) -> set[str]:
    """The numbers of the writes that the writer had been told were done."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.contract.store.crashing_writer", json.dumps(location.settings), CLUSTER],
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            seen = [process.stdout.readline() for _ in range(count)]
        finally:
            process.kill()
        seen += process.stdout.readlines()  # what it said while it was being killed
    return {line.decode().strip() for line in seen if line.endswith(b"\n")}
