"""The sandbox actor. It is a slot: once its sandbox has ended, it takes the next one of the same shape.

It holds the sandbox's Ray resources for as long as it lives. Every call names the sandbox; a slot refuses a sandbox
that it does not hold. Before it has one, a slot may hold a container that waits for a sandbox (`prepared.py`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import ray

from shoal.actors.core_files import leave_no_core_file
from shoal.actors.handles import Carrying, find_actor
from shoal.actors.messages import OCCUPIED, ContainerStarted, End, SandboxStarted, SlotFacts
from shoal.actors.names import node_actor_name
from shoal.actors.sandbox.lifecycle import SandboxLifecycle
from shoal.actors.sandbox.no_pydantic import hide_pydantic
from shoal.actors.sandbox.prepared import PreparedContainer
from shoal.model import tasks
from shoal.model.errors import FailedPrecondition, SandboxNotFound, ShoalError, Unavailable
from shoal.model.logs import write_logs
from shoal.model.secrets import SecretValues
from shoal.model.spec import ContainerShape, SandboxSpec, SlotShape
from shoal.model.states import Reason

hide_pydantic()  # before anything else: Ray loads this module first of all in a slot's process

_HEARS_S = 10.0
"""Seconds within which a slot hears from its node that its container is gone."""


class SandboxActor(Carrying):
    """One slot. Made by the controller with `names.slot_options`; `grace_s`: between SIGTERM and SIGKILL for a
    command; `log_format`: as the setting. It makes no spans: that would cost each slot memory. The controller does."""

    def __init__(self, slot_id: str, shape: SlotShape, grace_s: float, log_format: str = "text") -> None:
        leave_no_core_file()
        write_logs(log_format, "sandbox")
        self._slot_id = slot_id
        self._shape = shape
        self._grace_s = grace_s
        self._node_id = ray.get_runtime_context().get_node_id()
        self._node: Any = None
        self._life: SandboxLifecycle | None = None
        self._prepared: PreparedContainer | None = None
        self._pool = ""
        self._start_task: asyncio.Task[SandboxStarted] | None = None

    async def describe(self) -> SlotFacts:
        """Its shape, its machine, the sandbox or the prepared container that it holds."""
        await self._find_node()
        prepared, life = self._prepared, self._life
        return SlotFacts(
            self._slot_id,
            self._shape,
            self._node_id,
            None if life is None else life.sandbox_id,
            None if prepared is None else prepared.shape,
            self._pool,
            prepared.key if prepared is not None else None if life is None else life.key,
        )

    async def prepare(self, shape: ContainerShape, pool: str) -> ContainerStarted:
        """Prepares a container for the next sandbox, on behalf of `pool`. Called again, it joins the first call.

        Raises what kept it from that, and then the slot is free; `FailedPrecondition` if it holds a sandbox."""
        await self._find_node()
        if self._life is not None:
            raise FailedPrecondition(f"slot {self._slot_id} holds {self._life.sandbox_id}", state=OCCUPIED)
        if self._prepared is not None and (self._prepared.shape != shape or self._prepared.lost):
            await self.release()
        if self._prepared is None:
            self._prepared = PreparedContainer(self._slot_id, shape, self._node)
        self._pool = pool
        prepared = self._prepared
        try:
            return await prepared.ready()
        except BaseException:
            if self._prepared is prepared and prepared.lost:
                self._prepared = None
            raise

    async def unready(self) -> str:
        """Waits until the prepared container is not ready any more: how it was lost, or nothing where a sandbox took
        it."""
        return "it has none" if self._prepared is None else await self._prepared.over()

    async def release(self) -> None:
        """Removes the prepared container, if there is one."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            await prepared.remove()

    async def start(self, sandbox_id: str, spec: SandboxSpec, secrets: SecretValues | None = None) -> SandboxStarted:
        """Starts the sandbox. Called again for the same sandbox, it joins the first start. If it raises, nothing is
        left."""
        as_prepared = self._prepared is not None and self._prepared.shape == spec.container_shape
        return await self._take(sandbox_id, spec, SandboxLifecycle.start, secrets, as_prepared=as_prepared)

    async def restart(self, sandbox_id: str, spec: SandboxSpec, secrets: SecretValues | None = None) -> SandboxStarted:
        """Starts a persistent sandbox that is stopped on this node, as `start` does. If it raises, it is stopped."""
        return await self._take(sandbox_id, spec, SandboxLifecycle.restart, secrets)

    async def adopt(
        self, sandbox_id: str, spec: SandboxSpec, started_at: float, key: str | None = None
    ) -> SandboxStarted:
        """Takes a sandbox of this node whose slot was lost; `NotFound` if its container, `key`, is not here."""
        return await self._take(sandbox_id, spec, lambda life: life.adopt(started_at, key))

    async def hold(self, sandbox_id: str, spec: SandboxSpec, started_at: float, key: str) -> End:
        """Takes a sandbox that was given the container, `key`, which this slot holds ready, and waits for its end as
        `ended` does. Called again, it joins the first call."""
        if self._life is None and self._prepared is not None and self._prepared.key == key:
            await self._take(sandbox_id, spec, lambda life: life.hold(started_at), as_prepared=True)
        return await self._held(sandbox_id).ended()

    async def ended(self, sandbox_id: str) -> End:
        """Waits for the sandbox's end, by which its container is gone, or stopped if it is kept."""
        return await self._held(sandbox_id).ended()

    async def terminate(self, sandbox_id: str, message: str) -> End:
        """Ends the sandbox and waits for it."""
        return await self._give_up(sandbox_id, Reason.TERMINATED, message)

    async def stop(self, sandbox_id: str, reason: Reason, message: str) -> End:
        """Stops a persistent sandbox and waits for it."""
        return await self._give_up(sandbox_id, reason, message)

    async def wipe(self, sandbox_id: str) -> None:
        """Frees the slot for the next sandbox, once the controller knows the end of this one. Idempotent.

        It may know it from the node, and sooner than this slot does."""
        life = self._life
        if life is not None and life.sandbox_id == sandbox_id:
            try:
                async with asyncio.timeout(_HEARS_S):
                    await life.ended()
            except TimeoutError:
                raise FailedPrecondition(f"{sandbox_id} has not ended yet", state="running") from None
            self._life = self._start_task = None

    async def pid(self) -> int:
        """This worker's process id, for measurements and for tests that kill it."""
        return os.getpid()

    async def _give_up(self, sandbox_id: str, reason: Reason, message: str) -> End:
        self._held(sandbox_id)
        if self._start_task is not None:
            with suppress(ShoalError):  # one that is under way is seen through; if it fails, nothing is held
                await asyncio.shield(self._start_task)
        life = self._held(sandbox_id)
        life.give_up(reason, None, message)
        return await life.ended()

    async def _take(
        self,
        sandbox_id: str,
        spec: SandboxSpec,
        begin: Callable[[SandboxLifecycle], Coroutine[Any, Any, SandboxStarted]],
        secrets: SecretValues | None = None,
        *,
        as_prepared: bool = False,
    ) -> SandboxStarted:
        """`as_prepared`: in the container that the slot holds ready, if it does; else that is removed."""
        await self._find_node()
        if self._life is not None and self._life.sandbox_id != sandbox_id:
            raise FailedPrecondition(f"slot {self._slot_id} already holds {self._life.sandbox_id}", state=OCCUPIED)
        if self._start_task is None:
            self._life = life = SandboxLifecycle(sandbox_id, spec, self._node, self._grace_s)
            prepared, self._prepared = self._prepared, None
            if prepared is not None and not as_prepared:
                tasks.supervise(prepared.remove, "remove prepared container", attempts=1)
                prepared = None
            life.prepared = prepared
            life.secrets = secrets
            self._start_task = tasks.shared(begin(life), "start sandbox")
            self._start_task.add_done_callback(self._forget_failed)
        return await asyncio.shield(self._start_task)

    def _forget_failed(self, start_task: asyncio.Task[SandboxStarted]) -> None:
        """If the start failed, nothing is left and the slot is free, whether anybody still waits for it or not."""
        if start_task.cancelled() or start_task.exception() is not None:
            self._life = self._start_task = None

    def _held(self, sandbox_id: str) -> SandboxLifecycle:
        if self._life is None or self._life.sandbox_id != sandbox_id:
            held = "no sandbox" if self._life is None else self._life.sandbox_id
            raise SandboxNotFound(f"this slot holds {held}, not {sandbox_id}")
        return self._life

    async def _find_node(self) -> None:
        if self._node is None:
            self._node = await asyncio.to_thread(find_actor, node_actor_name(self._node_id))
        if self._node is None:
            raise Unavailable("this machine has no node actor yet; it is being started")
