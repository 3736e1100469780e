"""Freezes a sandbox's container and lets it go on. The relay cuts it off meanwhile, so that nobody waits for what
cannot answer; its agent dials again by itself."""

from __future__ import annotations

import asyncio

from shoal.actors.node.containers import Containers
from shoal.actors.node.ports import ExposedPorts
from shoal.model import tasks
from shoal.model.errors import NotFound


async def pause(containers: Containers, sandbox_id: str) -> None:
    """All or nothing. Idempotent; `NotFound`, `FailedPrecondition` where the engine cannot."""
    key = _key_of(containers, sandbox_id)
    async with containers.unchanged(key):
        await containers.engine.pause(key)
        try:
            await containers.relay.remove(key)
        except BaseException:
            await asyncio.shield(tasks.shared(containers.engine.resume(key), "resume container"))
            raise


async def resume(containers: Containers, ports: ExposedPorts, sandbox_id: str) -> None:
    """Idempotent; `NotFound`."""
    key = _key_of(containers, sandbox_id)
    async with containers.unchanged(key):
        await containers.expect_agent(key)
        await containers.engine.resume(key)
    await ports.reopen(key)


def _key_of(containers: Containers, sandbox_id: str) -> str:
    record = containers.serving(sandbox_id)
    if record is None:
        raise NotFound(f"sandbox {sandbox_id} has no container on this node")
    return record.key
