"""Freezes a sandbox's container and lets it go on. The relay cuts it off meanwhile, so that nobody waits for what
cannot answer; its agent dials again by itself."""

from __future__ import annotations

import asyncio

from shoal.actors.node.containers import Containers
from shoal.actors.node.ports import ExposedPorts
from shoal.model import tasks


async def pause(containers: Containers, sandbox_id: str) -> None:
    """All or nothing. Idempotent; `NotFound`, `FailedPrecondition` where the engine cannot."""
    key = containers.need(sandbox_id).key
    async with containers.unchanged(key):
        await containers.engine.pause(key)
        try:
            await containers.relay.remove(key)
        except BaseException:
            await asyncio.shield(tasks.shared(containers.engine.resume(key), "resume container"))
            raise


async def resume(containers: Containers, ports: ExposedPorts, sandbox_id: str) -> None:
    """Idempotent; `NotFound`."""
    key = containers.need(sandbox_id).key
    async with containers.unchanged(key):
        await containers.expect_agent(key)
        await containers.engine.resume(key)
    await ports.reopen(key)
