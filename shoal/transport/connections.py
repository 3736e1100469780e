"""Keeps one connection per sandbox and event loop, and renews it.

A connection belongs to the loop that opened it, so each loop has its own. Concurrent callers share one attempt to open one. The
table of a loop is bounded: beyond `MAX_CONNECTIONS` the one that was asked for least recently is closed, whose users come back.

One table serves many callers, so each answer is checked against what its caller may see: a grant knows its sandbox's environment.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import NamedTuple, TypeVar

from shoal.model.access import caller
from shoal.model.errors import NotFound, Unauthenticated, Unavailable
from shoal.model.grants import Grant
from shoal.model.sight import check_sees_sandbox
from shoal.wire.agent import Agent
from shoal.wire.bytestream import ByteStream
from shoal.wire.connection import Connection
from shoal.wire.dial import dial, open_channel
from shoal.wire.socketstream import SocketStream

T = TypeVar("T")

MAX_CONNECTIONS = 2048
AGENT_WAIT_S = 5.0
"""How long the relay may wait for a sandbox's agent, which is about to dial again when many clients come at once."""

OPEN_S = 10.0
_GRANT_MARGIN_S = 30.0
"""A grant that ends sooner is not used any more: clocks differ."""


class Connections:
    """The agents of a cluster's sandboxes, each over a connection of the running loop. `grant` asks the cluster for access."""

    def __init__(self, grant: Callable[[str], Awaitable[Grant]], limit: int = MAX_CONNECTIONS) -> None:
        self._grant = grant
        self._limit = limit
        self._grants: OrderedDict[str, Grant] = OrderedDict()
        self._loops: dict[asyncio.AbstractEventLoop, _LoopTable] = {}

    async def agent(self, sandbox_id: str) -> Agent:
        """The agent of a sandbox, over the connection that is open or else a new one."""
        table = self._loops.get(asyncio.get_running_loop()) or await self._begin()
        found = table.agents.get(sandbox_id)
        if found is not None and not found.agent.connection.closed:
            check_sees_sandbox(caller.get(), sandbox_id, found.environment)
            table.agents.move_to_end(sandbox_id)
            return found.agent
        # An attempt is made on behalf of its caller, so only those who may see the same share one.
        attempt = (sandbox_id, caller.get().environment)
        opening = table.opening.get(attempt)
        if opening is None:
            opening = asyncio.get_running_loop().create_task(self._open(table, sandbox_id))
            table.opening[attempt] = opening
            opening.add_done_callback(lambda task: _settle(table, attempt, task))
        # Shielded: one caller that gives up does not take the attempt from the others.
        return await asyncio.shield(opening)

    async def channel(self, sandbox_id: str) -> ByteStream:
        """A connection of its own to the agent, admitted, on which the agent's frames follow. Not kept: its user closes it."""
        return SocketStream(*await self._with_grant(sandbox_id, _open_channel))

    async def dial(self, sandbox_id: str, port: int) -> ByteStream:
        """A connection of its own to a port in the sandbox. Not kept: its user closes it."""
        return SocketStream(*await self._with_grant(sandbox_id, lambda grant: dial(grant.address, grant.token, port)))

    async def grant(self, sandbox_id: str) -> Grant:
        """Access to a sandbox: what is kept, else what the cluster gives."""
        return self._kept(sandbox_id) or await self._ask(sandbox_id)

    def learn(self, grant: Grant) -> None:
        """Keeps access that came unasked, so that the first connection need not ask for it."""
        self._grants[grant.sandbox_id] = grant
        if len(self._grants) > 2 * self._limit:
            self._grants.popitem(last=False)

    def forget(self, sandbox_id: str) -> None:
        """The sandbox has ended: closes this loop's connection to it, and drops its grant."""
        self._grants.pop(sandbox_id, None)
        table = self._loops.get(asyncio.get_running_loop())
        known = None if table is None else table.agents.pop(sandbox_id, None)
        if known is not None:
            known.agent.connection.close()

    async def close(self) -> None:
        """Closes this loop's connections."""
        table = self._loops.pop(asyncio.get_running_loop(), None)
        if table is not None and table.guard is not None:
            await table.guard.aclose()

    async def _begin(self) -> _LoopTable:
        """This loop's table, which goes with the loop."""
        loop = asyncio.get_running_loop()
        for other in list(self._loops):
            if other.is_closed():
                self._loops.pop(other, None)  # it was closed without a word to its generators
        table = self._loops[loop] = _LoopTable()
        # A loop tells nobody that it ends, except the generators that it has seen: `asyncio.run` closes them.
        table.guard = self._guard(loop, table)
        await anext(table.guard)
        return table

    async def _guard(self, loop: asyncio.AbstractEventLoop, table: _LoopTable) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            if self._loops.get(loop) is table:
                del self._loops[loop]
            await table.close()

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
        """Connects with the grant that is kept, and where that is of no use any more with a new one."""
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
            # The cluster said that it lives there: the relay has only just been started, or the sandbox is just ending.
            self._grants.pop(sandbox_id, None)
            raise Unavailable(error.message) from None

    async def _open(self, table: _LoopTable, sandbox_id: str) -> Agent:
        environment = ""

        async def connect(grant: Grant) -> Connection:
            nonlocal environment
            environment = grant.environment
            return await _dial(grant)

        connection = await self._with_grant(sandbox_id, connect)
        already = table.agents.get(sandbox_id)
        if already is not None and not already.agent.connection.closed:
            connection.close()  # opened for somebody else meanwhile
            return already.agent
        return self._admit(table, sandbox_id, connection, environment)

    def _admit(self, table: _LoopTable, sandbox_id: str, connection: Connection, environment: str) -> Agent:
        agent = Agent(connection)
        table.agents[sandbox_id] = _Known(agent, environment)
        table.agents.move_to_end(sandbox_id)
        while len(table.agents) > self._limit:
            _, oldest = table.agents.popitem(last=False)
            oldest.agent.connection.close()
        if len(table.agents) >= table.sweep_at:
            for key in [key for key, known in table.agents.items() if known.agent.connection.closed]:
                del table.agents[key]
            table.sweep_at = max(64, 2 * len(table.agents))
        return agent


class _Known(NamedTuple):
    """An agent, and the environment that its sandbox lives in."""

    agent: Agent
    environment: str


class _LoopTable:
    """What one loop has open. Sandboxes that ended have closed their connections by themselves: a sweep drops what is left."""

    def __init__(self) -> None:
        self.agents: OrderedDict[str, _Known] = OrderedDict()
        self.opening: dict[tuple[str, str], asyncio.Task[Agent]] = {}
        self.sweep_at = 64
        self.guard: AsyncGenerator[None, None] | None = None

    async def close(self) -> None:
        for task in self.opening.values():
            task.cancel()
        agents = [known.agent for known in self.agents.values()]
        self.agents.clear()
        for agent in agents:
            agent.connection.close()
        for agent in agents:
            await agent.connection.wait_closed()


async def _dial(grant: Grant) -> Connection:
    return await Connection.open(grant.address, grant.token, wait_s=AGENT_WAIT_S, timeout_s=OPEN_S)


async def _open_channel(grant: Grant) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await open_channel(grant.address, grant.token, wait_s=AGENT_WAIT_S, timeout_s=OPEN_S)


def _settle(table: _LoopTable, attempt: tuple[str, str], task: asyncio.Task[Agent]) -> None:
    table.opening.pop(attempt, None)
    if not task.cancelled():
        task.exception()  # seen, also where every caller has given up
