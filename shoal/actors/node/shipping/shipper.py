"""What a node sends to its sink: into the spool and out of it, and what is dropped on the way."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.actors.node.shipping.lines import Entry, Names, Splitter
from shoal.actors.node.shipping.sinks import Sink, SinkRefuses
from shoal.actors.node.shipping.spool import EVENTS, Spool
from shoal.model.access import SandboxEvent
from shoal.model.metrics import Series

log = logging.getLogger("shoal.shipping")

BATCH = 2_000
BATCH_BYTES = 1 << 20
"""The most that is sent at once."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
_BUFFER, _REFUSED = "buffer", "refused"


@dataclass(slots=True)
class Shipper:
    """One node's. `dropped`: entries by why; `gap` counts bytes that were lost before they were entries."""

    spool: Spool
    sink: Sink
    names: Names
    pauses_s: tuple[float, float] = (FIRST_PAUSE_S, LONGEST_PAUSE_S)
    sent: int = 0
    failures: int = 0
    lost_bytes: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def splitter(self, sandbox_id: str, fd: int) -> Splitter:
        """Where a stream is to be taken up."""
        return Splitter(await self._position(sandbox_id, fd))

    async def begin(self, sandbox_id: str) -> None:
        """A sandbox's command has just been started: both streams begin anew."""
        for fd in (1, 2):
            await self._add(sandbox_id, fd, 0, [])

    async def take(
        self, sandbox_id: str, fd: int, position: int, lines: Sequence[tuple[int, bytes]], gap: tuple[int, int] | None
    ) -> None:
        """Keeps lines of a stream, which is taken up to `position` then. `gap`: the part before them that is lost."""
        now = time.time()
        entries = [self.names.line(now, sandbox_id, fd, offset, line) for offset, line in lines]
        if gap is not None:
            self.lost_bytes += gap[1] - gap[0]
            entries.insert(0, self.names.gap(now, sandbox_id, fd, gap[0], gap[1] - gap[0]))
        await self._add(sandbox_id, fd, position, entries)

    async def finish(self, sandbox_id: str, fd: int, offset: int, data: bytes) -> None:
        """The end of a stream: `data`, from `offset` on. What of it has been taken already is passed over."""
        taken = await self._position(sandbox_id, fd)
        end = offset + len(data)
        if taken >= end:
            return
        gap = (taken, offset) if taken < offset else None
        rest = Splitter(max(taken, offset))
        lines = rest.add(data[rest.offset - offset :])
        await self.take(sandbox_id, fd, end, [*lines, *rest.flush()], gap)

    async def take_events(self, events: Sequence[SandboxEvent]) -> None:
        """Keeps events, oldest first."""
        entries = [self.names.event(event.at, event.to_dict()) for event in events]
        await self._add(EVENTS, 0, events[-1].id, entries)

    async def follow_events(self, ask: Callable[[int | None], Awaitable[Sequence[SandboxEvent] | int]]) -> None:
        """Takes the cluster's events for ever. `ask`: those after an id, or without one the newest's id. While the
        spool is full it waits: the store keeps them."""
        last = await asyncio.to_thread(self.spool.position, EVENTS, 0)
        while True:
            if last is None:
                newest = await ask(None)
                assert isinstance(newest, int)
                last = newest
                await self._add(EVENTS, 0, last, [])
            if self.spool.full:
                await asyncio.sleep(self.pauses_s[0])
                continue
            found: Any = await ask(last)
            if found:
                await self.take_events(found)
                last = found[-1].id

    async def deliver(self) -> None:
        """Sends what is in the spool for ever, in order; while the sink does not take it, again after pauses that
        grow."""
        pause = self.pauses_s[0]
        while True:
            self._news.clear()
            batch = await asyncio.to_thread(self.spool.first, BATCH, BATCH_BYTES)
            if not batch:
                await self._news.wait()
                continue
            try:
                await asyncio.to_thread(self.sink.send, [body for _, body in batch])
                self.sent += len(batch)
            except SinkRefuses as error:
                log.warning("%d entries are dropped: %s", len(batch), error)
                self.dropped[_REFUSED] += len(batch)
            except OSError as error:
                self.failures += 1
                if pause == self.pauses_s[0]:
                    log.warning("the sink does not take what sandboxes write; it is tried again: %s", error)
                await asyncio.sleep(pause * random.uniform(0.7, 1.0))
                pause = min(2 * pause, self.pauses_s[1])
                continue
            pause = self.pauses_s[0]
            await asyncio.to_thread(self.spool.remove, batch)

    def series(self) -> dict[Series, float]:
        """What it has counted, for the cluster's metrics."""
        found = dict(
            (
                _series("sent", "counter", "Entries that the sink took", self.sent),
                _series("failures", "counter", "Times that the sink took nothing", self.failures),
                _series("lost_bytes", "counter", "Output that was gone before it could be taken", self.lost_bytes),
                _series("spool_bytes", "gauge", "Entries that wait for the sink", self.spool.size),
            )
        )
        for why in (_BUFFER, _REFUSED):
            found |= dict((_series("dropped", "counter", "Entries that were dropped", self.dropped[why], why=why),))
        return found

    async def _position(self, sandbox_id: str, fd: int) -> int:
        position = await asyncio.to_thread(self.spool.position, sandbox_id, fd)
        return position or 0

    async def _add(self, source: str, fd: int, position: int, entries: Sequence[Entry]) -> None:
        lost = await asyncio.to_thread(self.spool.add, source, fd, position, entries)
        if lost:
            if not self.dropped[_BUFFER]:
                log.warning("the sink is behind by all that may wait for it: entries are dropped from now on")
            self.dropped[_BUFFER] += lost
        self._news.set()


def _series(name: str, kind: str, about: str, value: float, **labels: str) -> tuple[Series, float]:
    family = f"shoal_shipping_{name}"
    whole = f"{family}_total" if kind == "counter" else family
    return Series(family, kind, about, whole, tuple(labels.items())), float(value)
