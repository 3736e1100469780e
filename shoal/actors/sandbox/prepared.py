"""A container that a slot holds without a sandbox, its agent connected, so that a create needs only to tell it what is
not fixed yet: environment, working directory, user, command."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from shoal.actors.messages import ContainerLoss, ContainerStarted
from shoal.actors.sandbox.node_calls import AGENT_WAIT_S, call_node, connect, loss_of
from shoal.model import tasks
from shoal.model.errors import ShoalError, Unavailable
from shoal.model.mounts import MountSpec
from shoal.model.spec import ContainerShape
from shoal.wire.agent import Agent

log = logging.getLogger("shoal.sandbox")


class PreparedLost(Exception):
    """A prepared container cannot be given to a sandbox any more; another must be started."""


class Taken(NamedTuple):
    """A container that was given to a sandbox. `agent`: None if the connection to it broke; `told`: whether its node
    knows whose it is now."""

    started: ContainerStarted
    agent: Agent | None
    told: bool = True


class PreparedContainer:
    """One prepared container of one slot. Make it in a running loop: it begins at once."""

    def __init__(self, slot_id: str, shape: ContainerShape, node: Any) -> None:
        self.shape = shape
        self.key: str | None = None
        """Its container's, once that is ready, and though it is lost."""
        self._slot_id = slot_id
        self._node = node
        self._agent: Agent | None = None
        self._started: ContainerStarted | None = None
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._loss: asyncio.Task[ContainerLoss] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._opening = tasks.shared(self._open(), "prepare container")

    async def ready(self) -> ContainerStarted:
        """Waits until it is ready; raises what kept it from that. Then nothing is left, or the node sweeps what is."""
        return await asyncio.shield(self._opening)

    async def over(self) -> str:
        """Waits until it is not ready any more; tells how it was lost, nothing where a sandbox took it."""
        return await asyncio.shield(self._over)

    @property
    def lost(self) -> bool:
        return self._over.done()

    async def loss(self) -> ContainerLoss:
        """Waits until the container of the sandbox that has taken it is lost, and returns how. For one who asks."""
        assert self._loss is not None
        return await self._loss

    def give(self) -> ContainerStarted:
        """Gives it to a sandbox that has it already, as it is."""
        assert self._started is not None
        if self._agent is not None:
            self._agent.connection.close()
            self._agent = None
        self._end("")
        return self._started

    async def take(
        self,
        sandbox_id: str,
        configure: Callable[[Agent], Awaitable[None]],
        mounts: tuple[MountSpec, ...] = (),
        *,
        node_later: bool = False,
    ) -> Taken:
        """Gives it to a sandbox, and meanwhile has `configure` tell its agent whose it is; afterwards where the sandbox
        has `mounts`, for its working directory may be in one. `node_later`: the caller itself will tell the node
        (`assign_container`), if the agent answers. `PreparedLost`; raises what `configure` raises."""
        try:
            if self.key is None:
                await call_node(self._node, "hurry_container", self._slot_id)
            there = await self.ready()
            if self._agent is None:
                raise PreparedLost("it was removed")
            agent, self._agent = self._agent, None
            refused = await _error_of(configure(agent)) if node_later else None
            if node_later and refused is None and not agent.connection.closed:
                self._end("")
                return Taken(there, agent, told=False)
            if node_later:
                started = await call_node(self._node, "assign_container", there.key, sandbox_id)
                refused = refused or Unavailable("its connection broke")
            elif mounts:
                started = await call_node(self._node, "assign_container", there.key, sandbox_id, mounts)
                refused = await _error_of(configure(agent))
            else:
                started, refused = await asyncio.gather(
                    call_node(self._node, "assign_container", there.key, sandbox_id),
                    _error_of(configure(agent)),
                )
        except ShoalError as error:
            tasks.supervise(self.remove, "remove prepared container", attempts=1)
            raise PreparedLost(error.message) from None
        self._end("")
        if refused is None:
            return Taken(started, agent)
        agent.connection.close()
        if not isinstance(refused, Unavailable):
            raise refused
        return Taken(started, None)  # the relay was restarted meanwhile

    async def remove(self) -> None:
        """Removes it. Idempotent; if the node does not answer, it sweeps it later."""
        self._end("it was given up")
        if self._loss is not None:
            self._loss.cancel()
        if self._agent is not None:
            self._agent.connection.close()
            self._agent = None
        with suppress(ShoalError):
            await call_node(self._node, "release_containers", [self._slot_id])

    async def _open(self) -> ContainerStarted:
        try:
            started: ContainerStarted = await call_node(self._node, "prepare_container", self._slot_id, self.shape)
            self._agent = await connect(started, AGENT_WAIT_S)
        except ShoalError as error:
            self._end(error.message)
            with suppress(ShoalError):  # the first error says more
                await call_node(self._node, "release_containers", [self._slot_id])
            raise
        if self.lost:  # it was given up meanwhile, and its container with it
            self._agent.connection.close()
            raise Unavailable("the prepared container was given up")
        self._started, self.key = started, started.key
        self._loss = tasks.shared(loss_of(self._node, started.key), "hear of loss")
        self._watching = tasks.supervise(partial(self._watch, started.key, self._loss), "watch prepared container")
        return started

    async def _watch(self, key: str, lost: asyncio.Task[ContainerLoss]) -> None:
        loss = await asyncio.shield(lost)
        self._watching = None  # this very task, which goes on
        self._end(loss.message)
        log.warning("prepared container %s is lost: %s", key, loss.message)
        await self.remove()

    def _end(self, why: str) -> None:
        if not self._over.done():
            self._over.set_result(why)
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None


async def _error_of(work: Awaitable[None]) -> ShoalError | None:
    try:
        await work
    except ShoalError as error:
        return error
    return None
