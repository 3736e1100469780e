"""Stops a persistent sandbox's container and keeps its memory, so that its next start goes on from there."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from shoal.actors.node.records import ContainerRecord
from shoal.model.errors import NotFound, ShoalError

if TYPE_CHECKING:
    from shoal.actors.node.wiring import NodeParts

log = logging.getLogger("shoal.node")


async def suspend(parts: NodeParts, record: ContainerRecord | None) -> None:
    """Idempotent; if it raises, it runs on. `NotFound`, `FailedPrecondition` where its memory cannot be saved."""
    if record is None:
        raise NotFound("the sandbox has no container on this node")
    parts.forget(record.key)
    try:
        await parts.containers.suspend(record.key)
    except BaseException:
        parts.watch(record)
        raise


async def undo_restart(parts: NodeParts, record: ContainerRecord | None) -> bool:
    """Stops what has just been started again; suspends it if it had gone on from memory. Whether what memory it had is
    kept."""
    if record is None:
        return True
    if record.resumed:
        try:
            await suspend(parts, record)
        except ShoalError as error:
            log.warning("the memory of %s is lost: %s", record.sandbox_id, error)
        else:
            return True
    parts.forget(record.key)
    await parts.containers.stop(record.key)
    return not record.resumed
