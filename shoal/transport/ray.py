"""The transport inside a Ray cluster: control by calls to the controller (`ray_calls`), data through the relays."""

from __future__ import annotations

import asyncio
import builtins
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from ray.actor import ActorHandle

from shoal.model.access import Tunnel
from shoal.model.errors import SandboxEnded, ShoalError
from shoal.model.grants import Grant
from shoal.model.info import Listing, NodeInfo, Page, SandboxInfo
from shoal.model.settings import SandboxDefaults
from shoal.model.spec import SandboxSpec
from shoal.transport.connections import Connections
from shoal.transport.contract import LogChunk, Transport
from shoal.transport.ray_admin import RayAdmin, RayReplicaSide
from shoal.transport.ray_attach import attach
from shoal.transport.ray_calls import Controller
from shoal.transport.rollback import Undoing, with_key
from shoal.wire.agent import Agent
from shoal.wire.bytestream import ByteStream

T = TypeVar("T")

_POLL_S = 30.0
"""How long one call of a `wait` may take; longer waits are made of several."""

_Made = tuple[SandboxInfo, Grant | None]


class RayTransport(Transport):
    """A way to the cluster that this process is connected to, or gets connected to by `open`. `replica_side`: for the API."""

    def __init__(self, handle: ActorHandle[Any]) -> None:
        self._controller = Controller(handle)
        self._connections = Connections(self._grant)
        self._undoing = Undoing()
        self._admin = RayAdmin(self._controller)
        self.replica_side = RayReplicaSide(self._controller)

    @classmethod
    async def open(cls, address: str | None = None) -> RayTransport:
        """Connects this process to Ray, where it is not, and finds the controller.

        `address`: Ray's; None: only what this process is connected to already. Ray's token is where Ray looks for it (its
        environment variables). Raises `FailedPrecondition`, `Unavailable`, `Unauthenticated`.
        """
        return cls(await asyncio.to_thread(attach, address))

    @property
    def admin(self) -> RayAdmin:
        return self._admin

    # Control

    async def defaults(self) -> SandboxDefaults:
        return SandboxDefaults(**await self._controller.call("defaults"))

    async def create(self, spec: SandboxSpec, *, deadline: float, wait: bool = True) -> SandboxInfo:
        spec = with_key(spec)
        call = self._controller.call("create", spec, deadline, wait)
        info, grant = cast(_Made, await self._or_undo(call, [spec], wait))
        if grant is not None:
            self._connections.learn(grant)
        return info

    async def create_many(
        self, specs: Sequence[SandboxSpec], *, deadline: float, wait: bool = True
    ) -> Sequence[SandboxInfo | ShoalError]:
        wanted = [with_key(spec) for spec in specs]
        call = self._controller.call("create_many", wanted, deadline, wait)
        results: list[SandboxInfo | ShoalError] = []
        for made in cast("list[_Made | ShoalError]", await self._or_undo(call, wanted, wait)):
            if isinstance(made, ShoalError):
                results.append(made)
                continue
            info, grant = made
            if grant is not None:
                self._connections.learn(grant)
            results.append(info)
        return results

    async def get(self, sandbox_id: str) -> SandboxInfo:
        return cast(SandboxInfo, await self._controller.call("get", sandbox_id))

    async def find(self, name: str, environment: str) -> SandboxInfo:
        return cast(SandboxInfo, await self._controller.call("find", name, environment))

    async def page(self, listing: Listing) -> Page:
        return cast(Page, await self._controller.call("list_sandboxes", listing))

    async def list(self, listing: Listing) -> list[SandboxInfo]:
        page = await self.page(listing)
        found = page.sandboxes
        while page.reached is not None and len(found) < listing.limit:
            page = await self.page(replace(listing, limit=listing.limit - len(found), before=page.reached))
            found += page.sandboxes
        return found

    async def set_tags(self, sandbox_id: str, tags: Mapping[str, str]) -> SandboxInfo:
        return cast(SandboxInfo, await self._controller.call("set_tags", sandbox_id, dict(tags)))

    async def terminate(self, sandbox_id: str) -> SandboxInfo:
        info = cast(SandboxInfo, await self._controller.call("terminate", sandbox_id))
        self._connections.forget(sandbox_id)
        return info

    async def wait(self, sandbox_id: str, timeout: float | None) -> SandboxInfo:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _POLL_S if end is None else min(_POLL_S, max(0.0, end - time.monotonic()))
            info = cast(SandboxInfo, await self._controller.call("wait", sandbox_id, left))
            if info.ended:
                self._connections.forget(sandbox_id)
                return info
            if end is not None and time.monotonic() >= end:
                return info

    async def logs(self, sandbox_id: str, fd: int, offset: int) -> LogChunk:
        return LogChunk(*await self._controller.call("logs", sandbox_id, fd, offset))

    async def nodes(self) -> builtins.list[NodeInfo]:
        return cast("list[NodeInfo]", await self._controller.call("nodes"))

    # Tunnels

    async def expose(self, sandbox_id: str, port: int, *, protocol: str, public: bool) -> Tunnel:
        return cast(Tunnel, await self._controller.call("expose", sandbox_id, port, protocol, public))

    async def unexpose(self, sandbox_id: str, port: int) -> None:
        await self._controller.call("unexpose", sandbox_id, port)

    async def tunnels(self, sandbox_id: str) -> Sequence[Tunnel]:
        return cast("list[Tunnel]", await self._controller.call("tunnels", sandbox_id))

    async def tunnel_token(self, sandbox_id: str, port: int, expires_in: float) -> Tunnel:
        return cast(Tunnel, await self._controller.call("tunnel_token", sandbox_id, port, expires_in))

    # Data

    async def agent(self, sandbox_id: str) -> Agent:
        try:
            return await self._connections.agent(sandbox_id)
        except SandboxEnded:
            self._connections.forget(sandbox_id)
            raise

    async def channel(self, sandbox_id: str) -> ByteStream:
        return await self._connections.channel(sandbox_id)

    async def dial(self, sandbox_id: str, port: int) -> ByteStream:
        return await self._connections.dial(sandbox_id, port)

    async def close(self) -> None:
        await self._undoing.settle()
        await self._connections.close()

    async def _grant(self, sandbox_id: str) -> Grant:
        return cast(Grant, await self._controller.call("grant", sandbox_id))

    # A create that is given up

    async def _or_undo(self, call: Awaitable[T], specs: Sequence[SandboxSpec], wait: bool) -> T:
        try:
            return await call
        except asyncio.CancelledError:
            if wait:
                # The controller does not notice that its caller has gone.
                await self._undoing.undo(self._give_up(specs))
            raise

    async def _give_up(self, specs: Sequence[SandboxSpec]) -> None:
        """Ends what a create has made or is making. Its idempotency key tells which that is; the call may just be under way."""
        left = {(spec.environment, cast(str, spec.idempotency_key)) for spec in specs}
        for delay in (0.0, 0.05, 0.2):
            await asyncio.sleep(delay)
            left -= set(await self._controller.call("give_up", sorted(left)))
            if not left:
                return
