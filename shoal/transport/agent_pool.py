"""The agents of many sandboxes, each over one connection per event loop. A broken connection is replaced.

A connection belongs to the loop that opened it, so each loop has its own. Concurrent callers share one attempt to open
one. A loop keeps `MAX_CONNECTIONS`; beyond that the least recently used one is closed, and its users open it again.

One table may serve many callers, so an agent is given only to callers that may see the environment of its sandbox.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from shoal.model.access import Scope, caller
from shoal.model.errors import Unavailable
from shoal.model.visibility import check_sees_sandbox
from shoal.transport.loops import CLOSED, PerLoop, being_cancelled
from shoal.wire.agent import Agent
from shoal.wire.connection import Connection

MAX_CONNECTIONS = 2048

_Attempt = tuple[str, str, Scope]
"""A sandbox, and of its caller what decides how far an attempt gets."""


class Opened(NamedTuple):
    """A connection to a sandbox's agent, and the environment that the sandbox lives in; None if there is only one
    caller."""

    connection: Connection
    environment: str | None = None


class Agents:
    """`open` opens a connection to a sandbox's agent, in the running loop and on behalf of the context's caller."""

    def __init__(self, open: Callable[[str], Awaitable[Opened]], limit: int = MAX_CONNECTIONS) -> None:
        self._open = open
        self._limit = limit
        self._tables: PerLoop[_Table] = PerLoop(_Table, _Table.close)

    async def get(self, sandbox_id: str) -> Agent:
        """The agent of a sandbox, over the open connection or a new one. Raises what `open` raises, and
        `SandboxNotFound` if the caller may not see the sandbox."""
        table = self._tables.peek() or await self._tables.get()
        known = table.agents.get(sandbox_id)
        if known is not None and not known.agent.connection.closed:
            if known.environment is not None:
                check_sees_sandbox(caller.get(), sandbox_id, known.environment)
            table.agents.move_to_end(sandbox_id)
            return known.agent
        # An attempt is made on behalf of its caller, so only callers that see and may do the same share it.
        who = caller.get()
        attempt = (sandbox_id, who.environment, who.scope)
        opening = table.opening.get(attempt)
        if opening is None:
            opening = asyncio.get_running_loop().create_task(self._begin(table, sandbox_id))
            table.opening[attempt] = opening
            opening.add_done_callback(lambda task: _settle(table, attempt, task))
        try:
            # Shielded: a cancelled caller does not cancel the attempt for the others.
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            if opening.cancelled() and not being_cancelled():
                raise Unavailable(CLOSED) from None
            raise

    def forget(self, sandbox_id: str) -> None:
        """The sandbox has ended: closes this loop's connection to it."""
        table = self._tables.peek()
        known = None if table is None else table.agents.pop(sandbox_id, None)
        if known is not None:
            known.agent.connection.close()

    async def close(self) -> None:
        """Closes this loop's connections."""
        await self._tables.close()

    async def _begin(self, table: _Table, sandbox_id: str) -> Agent:
        connection, environment = await self._open(sandbox_id)
        already = table.agents.get(sandbox_id)
        if already is not None and not already.agent.connection.closed:
            connection.close()  # opened for another caller meanwhile
            return already.agent
        agent = Agent(connection)
        table.agents[sandbox_id] = _Known(agent, environment)
        table.agents.move_to_end(sandbox_id)
        while len(table.agents) > self._limit:
            _, oldest = table.agents.popitem(last=False)
            oldest.agent.connection.close()
        table.sweep()
        return agent


class _Known(NamedTuple):
    agent: Agent
    environment: str | None


class _Table:
    """One loop's connections. Those of ended sandboxes close by themselves; a sweep drops them from the table."""

    def __init__(self) -> None:
        self.agents: OrderedDict[str, _Known] = OrderedDict()
        self.opening: dict[_Attempt, asyncio.Task[Agent]] = {}
        self._sweep_at = 64

    def sweep(self) -> None:
        if len(self.agents) < self._sweep_at:
            return
        for key in [key for key, known in self.agents.items() if known.agent.connection.closed]:
            del self.agents[key]
        self._sweep_at = max(64, 2 * len(self.agents))

    async def close(self) -> None:
        openings = [*self.opening.values()]
        for task in openings:
            task.cancel()
        await asyncio.gather(*openings, return_exceptions=True)
        agents = [known.agent for known in self.agents.values()]
        self.agents.clear()
        for agent in agents:
            agent.connection.close()
        for agent in agents:
            await agent.connection.wait_closed()


def _settle(table: _Table, attempt: _Attempt, task: asyncio.Task[Agent]) -> None:
    table.opening.pop(attempt, None)
    if not task.cancelled():
        task.exception()  # retrieved, even if every caller was cancelled
