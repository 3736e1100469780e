"""The transport inside a Ray cluster: control by calls to the controller (`ray_calls`), data through the relays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, ParamSpec, TypeVar, cast

from ray.actor import ActorHandle

from shoal.model import verbs
from shoal.model.access import Scope, caller
from shoal.model.errors import FailedPrecondition, SandboxEnded, ShoalError
from shoal.model.grants import Grant
from shoal.model.info import SandboxInfo
from shoal.model.spec import SandboxSpec
from shoal.model.verbs import Made, Verb
from shoal.transport.connections import Connections
from shoal.transport.contract import Transport
from shoal.transport.ray_attach import attach
from shoal.transport.ray_calls import Controller
from shoal.transport.rollback import Rollback, with_key
from shoal.wire.agent import Agent
from shoal.wire.bytestream import ByteStream

WAKE_S = 50.0
"""Seconds for which a call waits for a suspended sandbox to go on."""

P = ParamSpec("P")
R = TypeVar("R")


class RayTransport(Transport):
    """A way to the cluster that this process is connected to, or gets connected to by `open`."""

    def __init__(self, handle: ActorHandle[Any]) -> None:
        self._controller = Controller(handle)
        self._connections = Connections(self._grant)
        self._rollback = Rollback()

    @classmethod
    async def open(cls, address: str | None = None) -> RayTransport:
        """Connects this process to Ray, where it is not, and finds the controller.

        `address`: Ray's; None: only what this process is connected to already. Ray's token is where Ray looks for it
        (its environment variables). Raises `FailedPrecondition`, `Unavailable`, `Unauthenticated`.
        """
        return cls(await asyncio.to_thread(attach, address))

    async def ask(self, verb: Verb[P, R], /, *args: P.args, **options: P.kwargs) -> R:
        return await self._controller.ask(verb, *args, **options)

    # Creates

    async def create(self, spec: SandboxSpec, *, deadline: float, wait: bool = True) -> SandboxInfo:
        spec = with_key(spec)
        made = await self._or_roll_back(self.ask(verbs.create, spec, deadline, wait), [spec], wait)
        return self._learn(made)

    async def create_many(
        self, specs: Sequence[SandboxSpec], *, deadline: float, wait: bool = True
    ) -> Sequence[SandboxInfo | ShoalError]:
        wanted = [with_key(spec) for spec in specs]
        outcomes = await self._or_roll_back(self.ask(verbs.create_many, wanted, deadline, wait), wanted, wait)
        return [each if isinstance(each, ShoalError) else self._learn(each) for each in outcomes]

    async def fork(
        self, sandbox_id: str, count: int, *, deadline: float, key: str, memory: bool = False
    ) -> Sequence[SandboxInfo]:
        return [self._learn(made) for made in await self.ask(verbs.fork, sandbox_id, count, deadline, key, memory)]

    def _learn(self, made: Made) -> SandboxInfo:
        info, grant = made
        if grant is not None:
            self._connections.learn(grant)
        return info

    async def _or_roll_back(self, call: Awaitable[R], specs: Sequence[SandboxSpec], wait: bool) -> R:
        """Awaits a create. If cancelled, ends what it made: the controller does not notice that its caller has gone."""
        try:
            return await call
        except asyncio.CancelledError:
            if wait:
                await self._rollback.run(self._give_up(specs))
            raise

    async def _give_up(self, specs: Sequence[SandboxSpec]) -> None:
        """Ends what a create has made or is making. Its idempotency key tells which that is; the call may just be under
        way."""
        left = {(spec.environment, cast(str, spec.idempotency_key)) for spec in specs}
        for delay in (0.0, 0.05, 0.2):
            await asyncio.sleep(delay)
            left -= set(await self.ask(verbs.give_up, sorted(left)))
            if not left:
                return

    # Data

    async def agent(self, sandbox_id: str) -> Agent:
        try:
            return await self._connections.agent(sandbox_id)
        except SandboxEnded:
            self.forget(sandbox_id)
            raise

    async def channel(self, sandbox_id: str) -> ByteStream:
        return await self._connections.channel(sandbox_id)

    async def dial(self, sandbox_id: str, port: int) -> ByteStream:
        return await self._connections.dial(sandbox_id, port)

    def forget(self, sandbox_id: str) -> None:
        self._connections.forget(sandbox_id)

    async def close(self) -> None:
        await self._rollback.settle()
        await self._connections.close()

    async def _grant(self, sandbox_id: str) -> Grant:
        try:
            return await self.ask(verbs.grant, sandbox_id)
        except FailedPrecondition as error:
            if not (error.fields.get("suspended") and error.fields.get("autostart")):
                raise
            if not caller.get().scope.covers(Scope.RUN):
                raise  # who may only look changes nothing by looking
            return await self.ask(verbs.wake, sandbox_id, WAKE_S)
