"""A live stream of what happens to sandboxes."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from shoal.client.contexts import Series
from shoal.client.dual_method import dual_method
from shoal.client.retrying_agent import Patience
from shoal.model import verbs
from shoal.model.access import SandboxEvent
from shoal.model.errors import Unavailable

if TYPE_CHECKING:
    from shoal.transport.contract import Transport

_WAIT_S = 20.0


class Events(Series[SandboxEvent]):
    """An endless stream of events, made by `Client.events`; a stream of one sandbox ends with the sandbox."""

    def __init__(
        self, transport: Transport, after: int | None, sandbox_id: str | None, environment: str | None
    ) -> None:
        self._transport = transport
        self._after = after
        self._sandbox_id = sandbox_id
        self._environment = environment
        self._found: deque[SandboxEvent] = deque()
        self._closed = False

    @dual_method
    async def start(self) -> None:
        """Marks the point after which no event is missed; without it, the first `next` does."""
        if self._after is None:
            self._after = await self._transport.ask(verbs.last_event)

    @dual_method
    async def next(self, timeout: float | None = None) -> SandboxEvent | None:
        """Waits for the next event; None after `timeout` seconds, once closed, or once the one sandbox has ended."""
        await self.start.aio()
        end = None if timeout is None else time.monotonic() + timeout
        patience = Patience()
        while not self._found and not self._closed:
            wait_s = _WAIT_S if end is None else max(0.0, min(_WAIT_S, end - time.monotonic()))
            ending = self._sandbox_id is not None and (await self._transport.ask(verbs.get, self._sandbox_id)).ended
            try:
                patience.working()
                await self._fetch(0 if ending else wait_s)
            except Unavailable as error:
                await patience.after(error)
                continue
            if not self._found and (ending or (end is not None and time.monotonic() >= end)):
                return None
        return None if self._closed else self._take()

    async def _fetch(self, wait_s: float) -> None:
        self._found.extend(
            await self._transport.ask(verbs.events, self._after, self._sandbox_id, self._environment, wait_s)
        )

    def _take(self) -> SandboxEvent:
        event = self._found.popleft()
        self._after = event.id
        return event

    @dual_method
    async def close(self) -> None:
        """Ends the stream. May be called again."""
        self._closed = True

    _leave = close
