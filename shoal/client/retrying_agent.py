"""Reaching a sandbox's agent, however often the connection to it breaks.

A broken connection says nothing about the sandbox: the relay may have been restarted, or the network may have hiccuped. So a
call is made again over a new connection, for `PATIENCE_S` seconds since the first failure; each new connection is asked of
the transport, which knows whether the sandbox has ended (`SandboxEnded`). What may be sent twice goes through `call`, what may
not through `once`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from shoal.model.errors import Unavailable

if TYPE_CHECKING:
    from shoal.transport.contract import Transport
    from shoal.wire.agent import Agent

R = TypeVar("R")

PATIENCE_S = 15.0
"""Seconds of failing after which a call gives up with `Unavailable`."""

_FIRST_DELAY_S = 0.01
_LONGEST_DELAY_S = 1.0


class Patience:
    """Decides after each failure of one call whether to go on, and waits a little longer each time.

    The budget runs from when the trouble began: from the start, or from the moment when a connection that had worked broke.
    """

    def __init__(self, budget_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget_s = budget_s
        self._clock = clock
        self._since = clock()
        self._working_since: float | None = None
        self._failed = False
        self._delay = _FIRST_DELAY_S

    def working(self) -> None:
        """There is a connection, and the call is on its way."""
        self._working_since = self._clock()

    async def after(self, error: Unavailable) -> None:
        """Returns when it is time for the next attempt; raises `error` where patience is at its end."""
        now = self._clock()
        # One that had worked for long, as for a wait of an hour, is another trouble; one that breaks at once is the same.
        if self._working_since is not None and (not self._failed or now - self._working_since > self._budget_s):
            self._since = now
            self._delay = _FIRST_DELAY_S
        self._failed = True
        self._working_since = None
        if not error.retryable or now - self._since + self._delay > self._budget_s:
            raise error
        await asyncio.sleep(self._delay)
        self._delay = min(2 * self._delay, _LONGEST_DELAY_S)


@dataclass(frozen=True, slots=True)
class RetryingAgent:
    """One sandbox's agent, by way of one transport."""

    transport: Transport
    sandbox_id: str

    async def connect(self) -> Agent:
        """The agent over a working connection; raises `Unavailable` at once if there is none."""
        return await self.transport.agent(self.sandbox_id)

    async def call(self, ask: Callable[[Agent], Awaitable[R]]) -> R:
        """`ask` of the agent, again where the connection broke: for what does no harm when it is asked twice."""
        patience = Patience()
        while True:
            try:
                agent = await self.transport.agent(self.sandbox_id)
                patience.working()
                return await ask(agent)
            except Unavailable as error:
                await patience.after(error)

    async def once(self, ask: Callable[[Agent], Awaitable[R]], what: str) -> R:
        """`ask` of the agent, one time. A connection that breaks meanwhile raises an `Unavailable` that is not retryable."""
        agent = await self.call(_itself)
        try:
            return await ask(agent)
        except Unavailable as error:
            doubt = Unavailable(f"{what}: {error.message}; it may have happened: look before you do it again")
            doubt.retryable = False
            raise doubt from None


async def _itself(agent: Agent) -> Agent:
    return agent
