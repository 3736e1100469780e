"""Connections to a cluster's sandboxes through their nodes' relays. Grants are kept while they are valid, and renewed.

One grant serves many callers, so its sandbox's environment is checked against what each caller may see.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shoal.model.access import caller
from shoal.model.errors import DeadlineExceeded, NotFound, Unauthenticated, Unavailable
from shoal.model.grants import Grant
from shoal.model.visibility import check_sees_sandbox
from shoal.transport.agent_pool import MAX_CONNECTIONS, Agents, Opened
from shoal.wire.agent import Agent
from shoal.wire.bytestream import ByteStream
from shoal.wire.connection import Connection
from shoal.wire.dial import dial, open_channel
from shoal.wire.socketstream import SocketStream

T = TypeVar("T")

AGENT_WAIT_S = 5.0
"""How long the relay may wait for a sandbox's agent, which dials again when many clients come at once."""

OPEN_S = 5.0
"""How long connecting to a relay may take. One that does not answer is most likely on a machine that is gone."""

_GRANT_MARGIN_S = 30.0
"""A grant that ends sooner than this is no longer used: clocks differ."""


class Connections:
    """The agents of a cluster's sandboxes, each over a connection of the running loop. `grant` asks the cluster for
    access."""

    def __init__(self, grant: Callable[[str], Awaitable[Grant]], limit: int = MAX_CONNECTIONS) -> None:
        self._grant = grant
        self._limit = limit
        self._grants: OrderedDict[str, Grant] = OrderedDict()
        self._agents = Agents(self._open, limit)

    async def agent(self, sandbox_id: str) -> Agent:
        """The agent of a sandbox, over the open connection or a new one."""
        return await self._agents.get(sandbox_id)

    async def channel(self, sandbox_id: str) -> ByteStream:
        """A separate connection to the agent, admitted, on which the agent's frames follow. Its user closes it."""
        return SocketStream(*await self._with_grant(sandbox_id, _open_channel))

    async def dial(self, sandbox_id: str, port: int) -> ByteStream:
        """A separate connection to a port in the sandbox. Its user closes it."""
        return SocketStream(*await self._with_grant(sandbox_id, lambda grant: _dial(grant, port)))

    async def grant(self, sandbox_id: str) -> Grant:
        """Access to a sandbox: the kept grant, or a new one."""
        return self._kept(sandbox_id) or await self._ask(sandbox_id)

    def learn(self, grant: Grant) -> None:
        """Keeps a grant that came with a create, so that the first connection need not ask for one."""
        self._grants[grant.sandbox_id] = grant
        if len(self._grants) > 2 * self._limit:
            self._grants.popitem(last=False)

    def forget(self, sandbox_id: str) -> None:
        """The sandbox has ended: closes this loop's connection to it, and drops its grant."""
        self._grants.pop(sandbox_id, None)
        self._agents.forget(sandbox_id)

    async def close(self) -> None:
        """Closes this loop's connections."""
        await self._agents.close()

    def _kept(self, sandbox_id: str) -> Grant | None:
        kept = self._grants.get(sandbox_id)
        if kept is None or kept.expires - _GRANT_MARGIN_S <= time.time():
            return None
        check_sees_sandbox(caller.get(), sandbox_id, kept.environment)
        return kept

    async def _ask(self, sandbox_id: str) -> Grant:
        grant = await self._grant(sandbox_id)
        self.learn(grant)
        return grant

    async def _with_grant(self, sandbox_id: str, connect: Callable[[Grant], Awaitable[T]]) -> T:
        """Connects with the kept grant; if that fails, with a new one."""
        kept = self._kept(sandbox_id)
        if kept is not None:
            try:
                return await connect(kept)
            except (Unauthenticated, NotFound, Unavailable) as error:
                if "port" in error.fields:
                    raise  # the agent itself said that nothing listens there
                # The relay may have moved, and the sandbox may have ended: ask again.
                self._grants.pop(sandbox_id, None)
        grant = await self._ask(sandbox_id)
        try:
            return await connect(grant)
        except NotFound as error:
            # The cluster says that it lives there, so the relay has just been started, or the sandbox is just ending.
            self._grants.pop(sandbox_id, None)
            raise Unavailable(error.message) from None

    async def _open(self, sandbox_id: str) -> Opened:
        return await self._with_grant(sandbox_id, _open)


async def _open(grant: Grant) -> Opened:
    opening = Connection.open(grant.address, grant.token, wait_s=AGENT_WAIT_S, timeout_s=OPEN_S)
    return Opened(await _in_time(opening), grant.environment)


async def _open_channel(grant: Grant) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await _in_time(open_channel(grant.address, grant.token, wait_s=AGENT_WAIT_S, timeout_s=OPEN_S))


async def _dial(grant: Grant, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await _in_time(dial(grant.address, grant.token, port, wait_s=AGENT_WAIT_S, timeout_s=OPEN_S))


async def _in_time(opening: Awaitable[T]) -> T:
    """A relay that does not answer in time is as good as none: nothing was done, and the call may be repeated."""
    try:
        return await opening
    except DeadlineExceeded as error:
        raise Unavailable(error.message) from None
