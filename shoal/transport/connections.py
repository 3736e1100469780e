"""Keeps one connection per sandbox and event loop, and renews it.

A connection belongs to the loop that opened it, so each loop has its own. Concurrent callers share one attempt to open one. The
table of a loop is bounded: beyond `MAX_CONNECTIONS` the one that was asked for least recently is closed, whose users come back.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable

from shoal.model.errors import NotFound, Unauthenticated, Unavailable
from shoal.model.grants import Grant
from shoal.wire.agent import Agent
from shoal.wire.connection import Connection

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
        agent = table.agents.get(sandbox_id)
        if agent is not None and not agent.connection.closed:
            table.agents.move_to_end(sandbox_id)
            return agent
        opening = table.opening.get(sandbox_id)
        if opening is None:
            opening = asyncio.get_running_loop().create_task(self._open(table, sandbox_id))
            table.opening[sandbox_id] = opening
            opening.add_done_callback(lambda task: _settle(table, sandbox_id, task))
        # Shielded: one caller that gives up does not take the attempt from the others.
        return await asyncio.shield(opening)

    def learn(self, grant: Grant) -> None:
        """Keeps access that came unasked, so that the first connection need not ask for it."""
        self._grants[grant.sandbox_id] = grant
        if len(self._grants) > 2 * self._limit:
            self._grants.popitem(last=False)

    def forget(self, sandbox_id: str) -> None:
        """The sandbox has ended: closes this loop's connection to it, and drops its grant."""
        self._grants.pop(sandbox_id, None)
        table = self._loops.get(asyncio.get_running_loop())
        agent = None if table is None else table.agents.pop(sandbox_id, None)
        if agent is not None:
            agent.connection.close()

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

    async def _open(self, table: _LoopTable, sandbox_id: str) -> Agent:
        kept = self._grants.get(sandbox_id)
        if kept is not None and kept.expires - _GRANT_MARGIN_S > time.time():
            try:
                return self._admit(table, sandbox_id, await _dial(kept))
            except (Unauthenticated, NotFound, Unavailable):
                # The relay may have moved, and the sandbox may have ended: ask again.
                self._grants.pop(sandbox_id, None)
        grant = await self._grant(sandbox_id)
        try:
            connection = await _dial(grant)
        except NotFound as error:
            # The cluster said that it lives there: the relay has only just been started, or the sandbox is just ending.
            raise Unavailable(error.message) from None
        self.learn(grant)
        return self._admit(table, sandbox_id, connection)

    def _admit(self, table: _LoopTable, sandbox_id: str, connection: Connection) -> Agent:
        agent = table.agents[sandbox_id] = Agent(connection)
        table.agents.move_to_end(sandbox_id)
        while len(table.agents) > self._limit:
            _, oldest = table.agents.popitem(last=False)
            oldest.connection.close()
        if len(table.agents) >= table.sweep_at:
            for key in [key for key, agent in table.agents.items() if agent.connection.closed]:
                del table.agents[key]
            table.sweep_at = max(64, 2 * len(table.agents))
        return agent


class _LoopTable:
    """What one loop has open. Sandboxes that ended have closed their connections by themselves: a sweep drops what is left."""

    def __init__(self) -> None:
        self.agents: OrderedDict[str, Agent] = OrderedDict()
        self.opening: dict[str, asyncio.Task[Agent]] = {}
        self.sweep_at = 64
        self.guard: AsyncGenerator[None, None] | None = None

    async def close(self) -> None:
        for task in self.opening.values():
            task.cancel()
        agents = [*self.agents.values()]
        self.agents.clear()
        for agent in agents:
            agent.connection.close()
        for agent in agents:
            await agent.connection.wait_closed()


async def _dial(grant: Grant) -> Connection:
    return await Connection.open(grant.address, grant.token, wait_s=AGENT_WAIT_S, timeout_s=OPEN_S)


def _settle(table: _LoopTable, sandbox_id: str, task: asyncio.Task[Agent]) -> None:
    table.opening.pop(sandbox_id, None)
    if not task.cancelled():
        task.exception()  # seen, also where every caller has given up
