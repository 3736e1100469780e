"""The containers that slots keep ready for the next sandbox: made when nobody waits for a start, and removed once no
slot knows of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shoal.actors.handles import call, find_actor, is_gone
from shoal.actors.messages import SlotFacts
from shoal.actors.node.containers import Containers
from shoal.actors.node.disk_watch import DiskWatch
from shoal.actors.node.images import NodeImages
from shoal.actors.node.records import ContainerRecord
from shoal.model import tasks
from shoal.model.errors import ShoalError, Unavailable
from shoal.model.spec import ContainerShape

log = logging.getLogger("shoal.node")

PATIENCE_S = 10.0
"""Seconds for which a container that is only to be kept ready waits for those that a sandbox waits for."""

_SETTLED_S = 60.0
"""Seconds after which a slot surely knows that the container which it asked for is ready."""

_TOLD_S = 5.0
"""Seconds within which a slot has surely told which sandbox has its container: it does so as soon as it is told."""

_ANSWER_S = 10.0
_LOOK_S = 0.02


@dataclass(slots=True)
class PreparedContainers:
    """`has_creates`: whether a sandbox waits for its start."""

    images: NodeImages
    containers: Containers
    disk_watch: DiskWatch
    has_creates: Callable[[], bool] = bool
    making: dict[str, asyncio.Task[ContainerRecord]] = field(default_factory=dict)
    _urgent: set[str] = field(default_factory=set)
    _unkept: set[str] = field(default_factory=set)
    """Which the last sweep found that no slot keeps."""

    async def prepare(self, slot_id: str, shape: ContainerShape) -> ContainerRecord:
        """The container that the slot keeps ready: the one that it has, or a new one."""
        task = self.making.get(slot_id)
        if task is None:
            task = self.making[slot_id] = tasks.shared(self._prepare(slot_id, shape), "prepare container")
            task.add_done_callback(lambda _: self._made(slot_id))
        return await asyncio.shield(task)

    def hurry(self, slot_id: str) -> None:
        """A sandbox waits for what the slot is about to have ready."""
        if slot_id in self.making:
            self._urgent.add(slot_id)

    def _made(self, slot_id: str) -> None:
        self.making.pop(slot_id, None)
        self._urgent.discard(slot_id)

    async def told(self, sandbox_id: str) -> None:
        """Waits a moment for a slot to tell that the sandbox has its container, if any has one of which it might."""
        until = time.monotonic() + _TOLD_S
        while (  # noqa: ASYNC110 - there are many ends to it, and hardly ever a wait
            self.containers.of_sandbox(sandbox_id) is None and self.containers.prepared() and time.monotonic() < until
        ):
            await asyncio.sleep(_LOOK_S)

    async def release(self, slot_ids: Sequence[str]) -> None:
        """Removes what slots kept ready, or are about to."""
        await asyncio.gather(*(self._release(slot_id) for slot_id in slot_ids))

    async def discard(self, key: str) -> None:
        """Removes one; a failure is logged, and the next sweep tries again."""
        self.disk_watch.remove(key)
        await self.containers.discard(key)

    @property
    def count(self) -> int:
        """How many are ready."""
        remains = self.containers.remains
        return sum(1 for record in self.containers.prepared() if record.ready and record.key not in remains)

    async def sweep(self) -> None:
        """Removes what was prepared for a slot that is gone, or that does not know of it. What was found so for the
        first time stays until the next sweep: a slot that has just died may have given it to a sandbox."""
        prepared = [record for record in self.containers.prepared() if record.ready]
        kept = await asyncio.gather(*map(_is_kept, prepared))
        unkept = [record for record, is_kept in zip(prepared, kept, strict=True) if not is_kept]
        before, self._unkept = self._unkept, {record.key for record in unkept}
        for record in unkept:
            # Another record: a sandbox has taken it meanwhile.
            if record.key in before and self.containers.records.get(record.key) is record:
                log.warning("no slot keeps container %s ready any more: removing it", record.key)
                await self.discard(record.key)

    async def _prepare(self, slot_id: str, shape: ContainerShape) -> ContainerRecord:
        existing = self.containers.prepared_by(slot_id)
        if existing is not None:
            if existing.shape == shape and existing.ready and self.containers.losses.of(existing.key) is None:
                return existing
            await self.discard(existing.key)
        await self.images.fetch(shape.image)
        until = time.monotonic() + PATIENCE_S
        while self._may_wait(slot_id) and time.monotonic() < until:  # noqa: ASYNC110 - many things end it
            await asyncio.sleep(_LOOK_S)
        return await self.containers.start(shape, None, slot_id)

    def _may_wait(self, slot_id: str) -> bool:
        return slot_id not in self._urgent and (self.has_creates() or self.containers.busy)

    async def _release(self, slot_id: str) -> None:
        making = self.making.get(slot_id)
        if making is not None:
            with contextlib.suppress(ShoalError):
                await asyncio.shield(making)
        record = self.containers.prepared_by(slot_id)
        if record is not None:
            await self.discard(record.key)


async def _is_kept(record: ContainerRecord) -> bool:
    slot = None if record.slot_id is None else await asyncio.to_thread(find_actor, record.slot_id)
    if slot is None:
        return False
    try:
        facts: SlotFacts = await call(slot, "describe", timeout_s=_ANSWER_S)
    except ShoalError as error:
        return not (isinstance(error, Unavailable) and is_gone(error))
    return facts.key == record.key or time.time() - record.created_at < _SETTLED_S
