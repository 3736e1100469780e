"""Starts of sandboxes' containers: whoever asks for a sandbox's container while it starts joins that start."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from shoal.actors.node.records import ContainerRecord
from shoal.model import tasks, tracing
from shoal.model.errors import NotFound, ShoalError
from shoal.model.spec import SandboxSpec

if TYPE_CHECKING:
    from shoal.actors.node.wiring import NodeParts


class ContainerStarts:
    """Those under way on one node, and how long the last ones took."""

    def __init__(self) -> None:
        self._under_way: dict[str, asyncio.Task[ContainerRecord]] = {}
        self._took: dict[str, tuple[tuple[str, float], ...]] = {}  # by container, until its slot is told

    def __bool__(self) -> bool:
        """Whether any is under way."""
        return bool(self._under_way)

    async def settle(self) -> None:
        """Waits until none of those under way is."""
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def start(self, parts: NodeParts, sandbox_id: str, spec: SandboxSpec) -> ContainerRecord:
        """The container that the sandbox has, or a new one."""
        return await self._join(sandbox_id, lambda: self._start(parts, sandbox_id, spec))

    async def restart(self, parts: NodeParts, sandbox_id: str) -> ContainerRecord:
        """Starts the container of a persistent sandbox that was stopped; `NotFound` if it is gone."""
        return await self._join(sandbox_id, lambda: _restart(parts, sandbox_id))

    async def record_of(self, parts: NodeParts, sandbox_id: str) -> ContainerRecord | None:
        """The sandbox's container, once a start that is under way is over."""
        starting = self._under_way.get(sandbox_id)
        if starting is not None:
            with contextlib.suppress(ShoalError):
                await asyncio.shield(starting)
        return parts.containers.of_sandbox(sandbox_id)

    def take_steps(self, key: str) -> tuple[tuple[str, float], ...]:
        """The steps of a container's start with the seconds that each took, once."""
        return self._took.pop(key, ())

    async def _join(
        self, sandbox_id: str, start: Callable[[], Coroutine[Any, Any, ContainerRecord]]
    ) -> ContainerRecord:
        task = self._under_way.get(sandbox_id)
        if task is None:
            task = self._under_way[sandbox_id] = tasks.shared(start(), "start container")
            task.add_done_callback(lambda _: self._under_way.pop(sandbox_id, None))
        return await asyncio.shield(task)

    async def _start(self, parts: NodeParts, sandbox_id: str, spec: SandboxSpec) -> ContainerRecord:
        existing = parts.containers.serving(sandbox_id)
        if existing is not None:
            return existing
        left = parts.containers.of_sandbox(sandbox_id)
        if left is not None:  # from a start that failed and could not be undone
            self._took.pop(left.key, None)
            parts.forget(left.key)
            await parts.containers.remove(left.key)
        began = time.monotonic()
        with tracing.span("image", {tracing.IMAGE: spec.image}, root=False):
            await parts.images.fetch(spec.image)
        fetched = time.monotonic()
        with tracing.span("container", root=False):
            record = await parts.containers.start(spec.container_shape, sandbox_id, mounts=spec.volumes)
        self._took[record.key] = (("image", fetched - began), ("container", time.monotonic() - fetched))
        parts.watch(record)
        return record


async def _restart(parts: NodeParts, sandbox_id: str) -> ContainerRecord:
    record = parts.containers.of_sandbox(sandbox_id)
    if record is None:
        raise NotFound(f"sandbox {sandbox_id} has no container on this node")
    record = await parts.containers.restart(record.key)
    parts.watch(record)
    await parts.ports.reopen(record.key)
    return record
