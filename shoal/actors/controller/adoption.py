"""Replaces the lost actor of a running sandbox: another adopts its container, or the container is removed. Also ends
what needs no actor for its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from shoal.actors.controller.endings import node_lost, outlived, vanished
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.phase import Event
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.run import Outcome
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.slot_maker import SlotMaker
from shoal.actors.controller.slots import SlotPool
from shoal.actors.messages import End, SandboxStarted
from shoal.model.errors import NotFound, ShoalError

log = logging.getLogger("shoal.adoption")

_ATTEMPTS = 5
_PLACED_S = 300.0
"""Seconds after which another actor is asked for: one that does not come up waits for room, or is lost."""
_RETRY_S = 0.2
_REMOVE_S = 30.0


@dataclass(slots=True)
class Adoption:
    """`call`: how actors are called."""

    pool: SlotPool
    maker: SlotMaker
    nodes: Nodes
    call: Callable[..., Awaitable[Any]]

    async def adopt(self, record: SandboxRecord) -> Outcome:
        """The slot of a running sandbox died: a new one on the same machine adopts its container, as soon as it finds
        room there. If none can, or none does within the sandbox's lifetime, which nobody else watches meanwhile, it has
        ended."""
        assert record.started is not None
        log.warning("slot %s of %s died; another adopts its container", record.slot_id, record.id)
        try:
            async with asyncio.timeout(_left_s(record)):
                return await self._adopt(record, record.started)
        except TimeoutError:
            return await self._given_up(record, outlived(record))

    async def _adopt(self, record: SandboxRecord, started: SandboxStarted) -> Outcome:
        for _ in range(_ATTEMPTS):
            slot = self.maker.create(record.spec.slot_shape, started.node_id)
            try:
                while not await self._is_placed(slot):
                    self.maker.kill(slot)
                    slot = self.maker.create(record.spec.slot_shape, started.node_id)
                adopted = await self.call(slot.handle, "adopt", record.id, record.spec, started.started_at, started.key)
            except NotFound:
                self.pool.put(slot)
                end = vanished(record, "its container was gone when its actor came back")
                return Outcome(Event.ENDED, end=end)
            except ShoalError as error:
                log.warning("%s: %s", record.id, error)
                self.maker.kill(slot)
                if not self.nodes.alive(started.node_id):
                    return Outcome(Event.ENDED, end=node_lost())
                await asyncio.sleep(_RETRY_S)
            except BaseException:
                self.maker.kill(slot)
                raise
            else:
                return Outcome(Event.ADOPTED, slot=slot, started=adopted)
        return await self._given_up(record, vanished(record, "no actor could adopt its container"))

    async def _is_placed(self, slot: Slot) -> bool:
        try:
            async with asyncio.timeout(_PLACED_S):
                await self.maker.placed(slot)
        except TimeoutError:
            return False
        return True

    async def _given_up(self, record: SandboxRecord, end: End) -> Outcome:
        """A persistent one's container is stopped, not removed: by who takes the outcome."""
        if not record.spec.persistent and record.started is not None:
            await self.remove(record.id, record.started.node_id)
        return Outcome(Event.ENDED, end=end)

    async def end_directly(self, record: SandboxRecord) -> bool:
        """Has the node end a running sandbox for which its slot would do no more: a call less for whoever waits. False:
        its slot must be asked, which also knows what ended it before."""
        spec, started = record.spec, record.started
        if spec.command or spec.persistent or started is None:
            return False
        try:
            return bool(await self.call(self.nodes.handle(started.node_id), "end_container", started.key, record.id))
        except (ShoalError, AttributeError):  # a node that is away, for which its slot waits, or of an older Shoal
            return False

    async def remove(self, sandbox_id: str, node_id: str | None) -> None:
        """Removes the sandbox's container on a node, or (None) on every node. A node that does not answer sweeps it
        later."""
        if node_id is not None and not self.nodes.alive(node_id):
            return
        handles = self.nodes.handles() if node_id is None else [self.nodes.handle(node_id)]
        for result in await asyncio.gather(
            *(self.call(handle, "remove_sandbox", sandbox_id, timeout_s=_REMOVE_S) for handle in handles),
            return_exceptions=True,
        ):
            if isinstance(result, BaseException):
                log.warning("removing %s: %s; the node's sweep will do it", sandbox_id, result)


def _left_s(record: SandboxRecord) -> float | None:
    """Seconds that are left of its lifetime; None: it has no end."""
    if record.started is None or record.spec.timeout is None:
        return None
    return max(0.0, record.started.started_at + record.spec.timeout - time.time())
