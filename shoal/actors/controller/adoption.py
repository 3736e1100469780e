"""When an actor of a sandbox's is lost: another takes its container over, or what there is of it is removed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from shoal.actors.controller.endings import node_lost, outlived, vanished
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.slots import Slot, SlotMaker, SlotPool
from shoal.actors.messages import End, SandboxStarted
from shoal.model.errors import NotFound, ShoalError

log = logging.getLogger("shoal.adoption")

_ATTEMPTS = 5
_RETRY_S = 0.2
_REMOVE_S = 30.0


@dataclass(slots=True)
class Adoption:
    """`call`: how actors are called."""

    pool: SlotPool
    maker: SlotMaker
    nodes: Nodes
    call: Callable[..., Awaitable[Any]]

    async def adopt(self, record: SandboxRecord) -> Slot | End:
        """The slot of a running sandbox died: a new one on the same machine takes its container over, as soon as it finds room there. Where
        none can, or none does in the sandbox's lifetime, which nobody else sees to meanwhile: its end."""
        assert record.started is not None
        log.warning("slot %s of %s died; taking its container over", record.slot_id, record.id)
        try:
            async with asyncio.timeout(max(0.0, record.started.started_at + record.spec.timeout - time.time())):
                return await self._adopt(record, record.started)
        except TimeoutError:
            await self.remove(record.id, record.started.node_id)
            return outlived(record)

    async def _adopt(self, record: SandboxRecord, started: SandboxStarted) -> Slot | End:
        for _ in range(_ATTEMPTS):
            slot = self.maker.create(record.spec.slot_shape, started.node_id)
            try:
                await self.maker.placed(slot)
                record.started = await self.call(slot.handle, "adopt", record.id, record.spec, started.started_at)
            except NotFound:
                self.pool.put(slot)
                return vanished(record, "its container was gone when its actor came back")
            except ShoalError as error:
                log.warning("%s: %s", record.id, error)
                self.maker.kill(slot)
                if not self.nodes.alive(started.node_id):
                    return node_lost()
                await asyncio.sleep(_RETRY_S)
            except BaseException:
                self.maker.kill(slot)
                raise
            else:
                return slot
        await self.remove(record.id, started.node_id)
        return vanished(record, "no actor could take its container over")

    async def remove(self, sandbox_id: str, node_id: str | None) -> None:
        """Whatever container the sandbox has on a node, or (None) anywhere, is removed. A node that does not answer sweeps by itself later."""
        if node_id is not None and not self.nodes.alive(node_id):
            return
        handles = self.nodes.handles() if node_id is None else [self.nodes.handle(node_id)]
        for result in await asyncio.gather(
            *(self.call(handle, "remove_sandbox", sandbox_id, timeout_s=_REMOVE_S) for handle in handles),
            return_exceptions=True,
        ):
            if isinstance(result, BaseException):
                log.warning("removing %s: %s; the node's sweep will do it", sandbox_id, result)
