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
    """Decides after each failure whether to go on, and waits a little longer each time."""

    def __init__(self, budget_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget_s = budget_s
        self._clock = clock
        self._since: float | None = None
        self._last = 0.0
        self._delay = _FIRST_DELAY_S

    async def after(self, error: Unavailable) -> None:
        """Returns when it is time for the next attempt; raises `error` where patience is at its end."""
        now = self._clock()
        if self._since is None or now - self._last > self._budget_s:
            # The first failure, or the first after a long time in which all went well (an hour's `wait`, say).
            self._since = now
            self._delay = _FIRST_DELAY_S
        self._last = now
        if not error.retryable or now - self._since + self._delay > self._budget_s:
            raise error
        await asyncio.sleep(self._delay)
        self._delay = min(2 * self._delay, _LONGEST_DELAY_S)

    def restore(self) -> None:
        """All is well again."""
        self._since = None


@dataclass(frozen=True, slots=True)
class Reach:
    """One sandbox's agent, by way of one transport."""

    transport: Transport
    sandbox_id: str

    async def agent(self) -> Agent:
        return await self.transport.agent(self.sandbox_id)

    async def call(self, ask: Callable[[Agent], Awaitable[R]]) -> R:
        """`ask` of the agent, again where the connection broke: for what does no harm when it is asked twice."""
        patience: Patience | None = None
        while True:
            try:
                return await ask(await self.transport.agent(self.sandbox_id))
            except Unavailable as error:
                patience = patience or Patience()
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
