"""Passes the engine's events on to who listens for them."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Mapping

from shoal.actors.engines.contract import EngineEvent

_log = logging.getLogger(__name__)

_QUEUE = 10_000
"""Events that may wait for a slow reader; beyond it they are dropped, and found by `list`."""


class Listener:
    """The events of containers that carry `labels`, from its creation on, until it is closed."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.labels = dict(labels)
        self._queue: asyncio.Queue[EngineEvent | None] = asyncio.Queue(_QUEUE)

    def tell(self, event: EngineEvent) -> None:
        if self._queue.full():
            _log.warning("engine events come faster than they are read; dropped one of %s", event.key)
            return
        self._queue.put_nowait(event)

    def close(self) -> None:
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[EngineEvent]:
        while (event := await self._queue.get()) is not None:
            yield event


class Listeners:
    """All who listen. Used in the loop of the engine."""

    def __init__(self) -> None:
        self._all: weakref.WeakSet[Listener] = weakref.WeakSet()

    def add(self, labels: Mapping[str, str]) -> AsyncIterator[EngineEvent]:
        listener = Listener(labels)
        self._all.add(listener)
        return aiter(listener)

    def tell(self, event: EngineEvent, labels: Mapping[str, str]) -> None:
        """`labels`: the container's."""
        for listener in list(self._all):
            if listener.labels.items() <= labels.items():
                listener.tell(event)

    def close(self) -> None:
        """Ends all."""
        for listener in list(self._all):
            listener.close()
