"""Calls to a sandbox's agent that survive broken connections.

A broken connection says nothing about the sandbox: the relay may have restarted, or the network may have failed for a
moment. So a call is repeated over a new connection, for `PATIENCE_S` seconds since the first failure. The transport
opens each connection and knows whether the sandbox has ended (`SandboxEnded`). `call` is for what may be sent twice,
`once` for what may not.
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

PATIENCE_S = 40.0
"""Seconds of failures after which a call raises `Unavailable`: long enough to be told that the machine is lost. The
cluster knows that up to 20 s after Ray's process there has ended, and up to 45 s after the machine has vanished, which
breaks its connections after 20."""

_FIRST_DELAY_S = 0.01
_LONGEST_DELAY_S = 1.0


class Patience:
    """Decides after each failure of one call whether to try again, with growing pauses.

    The budget counts from the start of the trouble: the first attempt, or the moment a working connection broke. No
    library: it would not know that moment, and tenacity adds 50 µs to every exec.
    """

    def __init__(self, budget_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget_s = budget_s
        self._clock = clock
        self._since = clock()
        self._working_since: float | None = None
        self._failed = False
        self._delay = _FIRST_DELAY_S

    def working(self) -> None:
        """The connection is up and the call is under way."""
        self._working_since = self._clock()

    async def after(self, error: Unavailable) -> None:
        """Returns when it is time for the next attempt; raises `error` once the budget is spent."""
        now = self._clock()
        # A break after long work, such as an hour of waiting, is new trouble; one that follows at once is the same.
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
    """One sandbox's agent over one transport."""

    transport: Transport
    sandbox_id: str

    async def connect(self) -> Agent:
        """The agent over a working connection; raises `Unavailable` at once if there is none."""
        return await self.transport.agent(self.sandbox_id)

    async def call(self, ask: Callable[[Agent], Awaitable[R]]) -> R:
        """Calls `ask`, again after a broken connection: only for calls that may be repeated."""
        patience = Patience()
        while True:
            try:
                agent = await self.transport.agent(self.sandbox_id)
                patience.working()
                return await ask(agent)
            except Unavailable as error:
                await patience.after(error)

    async def once(self, ask: Callable[[Agent], Awaitable[R]], what: str) -> R:
        """Calls `ask` once. If the connection breaks meanwhile, raises an `Unavailable` that is not retryable."""
        agent = await self.call(_itself)
        try:
            return await ask(agent)
        except Unavailable as error:
            doubt = Unavailable(f"{what}: {error.message}; it may have happened; check before you repeat it")
            doubt.retryable = False
            raise doubt from None


async def _itself(agent: Agent) -> Agent:
    return agent
