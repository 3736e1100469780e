"""Forks: sandboxes that begin with the files of another one, and with its memory if so asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from shoal.actors.controller.history import History
from shoal.actors.controller.image_changes import ImageChanges
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.sandboxes import MAX_MANY, Sandboxes
from shoal.actors.controller.snapshots import Snapshots
from shoal.model import tasks
from shoal.model.access import Caller
from shoal.model.errors import ShoalError
from shoal.model.spec import SandboxSpec
from shoal.model.validate import check_key, check_number
from shoal.model.verbs import SNAPSHOT_S, Made


@dataclass(slots=True)
class Forks:
    """`clock`: unix seconds."""

    sandboxes: Sandboxes
    history: History
    snapshots: Snapshots
    changes: ImageChanges
    clock: Callable[[], float] = time.time

    async def fork(
        self, sandbox_id: str, count: int, deadline_s: float, key: str, memory: bool, caller: Caller
    ) -> list[Made]:
        """So many sandboxes of the same spec, from its files (and `memory`) as they are now: all, or none. It is seen
        through, whatever becomes of the caller."""
        check_number("count", count, 0, MAX_MANY, "sandboxes", whole=True)
        check_key(key)
        source = await self.history.get(sandbox_id, caller)
        self.sandboxes.admission.check_call(source.spec, deadline_s, caller)
        keys = [f"{key}:{number}" for number in range(count)]
        forking = self._fork(source, keys, deadline_s, key, memory, caller)
        return await asyncio.shield(tasks.shared(forking, "fork"))

    async def _fork(
        self, source: SandboxRecord, keys: list[str], deadline_s: float, key: str, memory: bool, caller: Caller
    ) -> list[Made]:
        end = time.monotonic() + deadline_s
        spec = replace(source.spec, name=None, tags=dict(source.tags))
        if memory:
            spec = replace(spec, command=())  # it runs already
        known = self.sandboxes.registry.keyed(spec.environment, keys[0])
        if known is not None:  # the same call again: its image may be about to go
            return await self._created(replace(spec, image=known.spec.image), keys, deadline_s, caller)
        ttl = deadline_s + SNAPSHOT_S  # should this controller be killed before it lets the image go
        if memory:
            image = await self.snapshots.checkpoint(source.id, ttl, key, caller)
        else:
            image = await self.snapshots.snapshot(source.id, None, ttl, key, None, caller)
        try:
            left_s = max(0.1, end - time.monotonic())
            return await self._created(replace(spec, image=image.id), keys, left_s, caller)
        finally:
            await self.changes.let_go([image.id], self.clock())

    async def _created(self, spec: SandboxSpec, keys: list[str], left_s: float, caller: Caller) -> list[Made]:
        specs = [replace(spec, idempotency_key=key) for key in keys]
        outcomes = await self.sandboxes.create_many(specs, left_s, True, caller)
        failed = [each for each in outcomes if isinstance(each, ShoalError)]
        made = [each for each in outcomes if not isinstance(each, ShoalError)]
        if failed:
            ends = (self.sandboxes.terminate(info.id, caller) for info, _ in made)
            await asyncio.gather(*ends, return_exceptions=True)
            raise failed[0]
        return made
