"""Write to a store until killed, and print what was acknowledged: `python -m … <settings as JSON> <cluster>`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from shoal.actors.controller.store import Change, Store
from shoal.cluster.store import open_store
from tests.contract.store.samples import entry, event, living

WRITERS = 16
PARTS = 3
"""Sandboxes, events and audit entries, each, of one write."""


async def write_for_ever(store: Store, writer: int) -> None:
    for round_ in range(1_000_000):
        number = round_ * WRITERS + writer
        names = [f"sb-{number}-{part}" for part in range(PARTS)]
        await store.write(
            Change(
                sandboxes=[living(name) for name in names],
                events=[event(number * PARTS + part + 1, name) for part, name in enumerate(names)],
                audit=[entry(target=name) for name in names],
            )
        )
        os.write(1, f"{number}\n".encode())


async def main(settings: dict[str, Any], cluster: str) -> None:
    store = open_store(settings)
    await store.open(cluster, 10)
    await asyncio.gather(*(write_for_ever(store, writer) for writer in range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1]), sys.argv[2]))
