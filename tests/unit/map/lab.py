"""A cluster in memory for `shoal.map`, and functions to map."""

from __future__ import annotations

import asyncio
from typing import Any

import shoal
from shoal.client.cluster import Client
from shoal.model.info import Listing, SandboxInfo
from tests.fakes.cluster import FakeTransport


class Lab:
    """A cluster in memory, and what a map on it needs."""

    def __init__(self) -> None:
        self.fake = FakeTransport()
        self.client = Client(self.fake)

    def sandboxes(self, *, include_ended: bool = True) -> list[SandboxInfo]:
        return asyncio.run(self.fake.list(Listing(limit=10_000, include_ended=include_ended)))

    async def living(self) -> int:
        return len(await self.fake.list(Listing(limit=10_000)))


def plain(sandbox: shoal.Sandbox, item: int) -> int:
    return int(sandbox.run("echo", str(item)).stdout) ** 2


async def awaited(sandbox: shoal.Sandbox, item: int) -> int:
    return int((await sandbox.run.aio("echo", str(item))).stdout) ** 2


def calls_awaited(sandbox: shoal.Sandbox, item: int) -> Any:
    """As a lambda or a partial does: plain, but its result is to be awaited."""
    return awaited(sandbox, item)


async def others() -> int:
    """How many tasks of maps run in this loop."""
    return sum(task.get_name().startswith("map: ") for task in asyncio.all_tasks())
