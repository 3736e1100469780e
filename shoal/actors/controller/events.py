"""The events of sandboxes: the newest in memory, and the callers that wait for the next.

An event is drafted (it gets its id), written together with its effect, and then published, always in the order of ids:
whoever has seen one has seen all before it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Iterable
from typing import Any

from shoal.model.access import SandboxEvent

RING = 10_000
"""Events kept in memory; older ones are read from the store."""

RING_BYTES = 32 << 20
"""The most bytes that their texts (tags, messages) take together."""

PAGE = 1000
"""The most events that one call returns."""


class EventLog:
    """The events of one run of the controller. `last`: the id of the newest event before it. Uses no disk and no
    clock."""

    def __init__(self, last: int, size: int = RING) -> None:
        self._drafted = last
        self._published = last
        self._floor = last  # the newest that is not in the ring
        self._ring: deque[SandboxEvent] = deque()
        self._size = size
        self._weight = 0
        self._in_order: deque[int] = deque()  # drafted, not yet published or dropped
        self._settled: dict[int, SandboxEvent | None] = {}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    @property
    def last(self) -> int:
        """The id of the newest event that is published."""
        return self._published

    def draft(self, at: float, environment: str, sandbox_id: str, kind: str, data: dict[str, Any]) -> SandboxEvent:
        """A new event with the next id. Publish or drop it: later ones wait for it."""
        self._drafted += 1
        self._in_order.append(self._drafted)
        return SandboxEvent(self._drafted, at, environment, sandbox_id, kind, data)

    def publish(self, events: Iterable[SandboxEvent]) -> None:
        """The events are on record: wakes the callers that wait, once all earlier events are settled."""
        self._settled.update((event.id, event) for event in events)
        self._advance()

    def drop(self, events: Iterable[SandboxEvent]) -> None:
        """The events were not written: their ids stay unused."""
        self._settled.update((event.id, None) for event in events)
        self._advance()

    def since(
        self, after: int, *, environment: str | None = None, sandbox_id: str | None = None, limit: int = PAGE
    ) -> list[SandboxEvent] | None:
        """Published events with an id above `after`, oldest first; None if memory does not reach back so far."""
        if after < self._floor:
            return None
        newer = []
        for event in reversed(self._ring):
            if event.id <= after:
                break
            newer.append(event)
        found = (event for event in reversed(newer) if _concerns(event, environment, sandbox_id))
        return [event for event, _ in zip(found, range(limit), strict=False)]

    async def wait(self, environment: str | None, sandbox_id: str | None, timeout_s: float) -> bool:
        """Waits until an event is published that may match; False after `timeout_s`."""
        topic = _topic(environment, sandbox_id)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiting.setdefault(topic, [])
        waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            return False
        finally:
            if not waiter.done() or waiter.cancelled():
                _remove(self._waiting, topic, waiter)
        return True

    def expire(self, before: float) -> None:
        """Forgets events from before that time, as the store does."""
        while self._ring and self._ring[0].at < before:
            self._forget()

    def _forget(self) -> None:
        oldest = self._ring.popleft()
        self._weight -= _weight(oldest)
        self._floor = oldest.id

    def _advance(self) -> None:
        while self._in_order and self._in_order[0] in self._settled:
            event = self._settled.pop(self._in_order.popleft())
            if event is None:
                continue
            self._ring.append(event)
            self._weight += _weight(event)
            self._published = event.id
            while len(self._ring) > self._size or self._weight > RING_BYTES:
                self._forget()
            for topic in (_topic(None, None), _topic(event.environment, None), _topic(None, event.sandbox_id)):
                for waiter in self._waiting.pop(topic, ()):
                    if not waiter.done():
                        waiter.set_result(None)


def _concerns(event: SandboxEvent, environment: str | None, sandbox_id: str | None) -> bool:
    return environment in (None, event.environment) and sandbox_id in (None, event.sandbox_id)


def _topic(environment: str | None, sandbox_id: str | None) -> str:
    """The topic to wait for: one sandbox, one environment, or everything."""
    if sandbox_id is not None:
        return f"sandbox {sandbox_id}"
    return "everything" if environment is None else f"environment {environment}"


def _weight(event: SandboxEvent) -> int:
    weight = 0
    for value in event.data.values():
        texts = (*value, *value.values()) if isinstance(value, dict) else (value,)
        weight += sum(map(sys.getsizeof, texts))
    return weight


def _remove(waiting: dict[str, list[asyncio.Future[None]]], topic: str, waiter: asyncio.Future[None]) -> None:
    waiters = waiting.get(topic, [])
    if waiter in waiters:
        waiters.remove(waiter)
    if not waiters:
        waiting.pop(topic, None)
