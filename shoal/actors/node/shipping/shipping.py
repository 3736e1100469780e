"""Log shipping on one node: what the node actor calls, and the loops behind it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

from shoal.actors.node.logs import LogFiles
from shoal.actors.node.shipping.follower import Connect, Follower
from shoal.actors.node.shipping.lines import STREAMS, Names
from shoal.actors.node.shipping.shipper import Shipper
from shoal.actors.node.shipping.sinks import sink
from shoal.actors.node.shipping.spool import Spool
from shoal.model import tasks
from shoal.model.access import SandboxEvent
from shoal.model.metrics import Series
from shoal.model.settings import TelemetrySettings
from shoal.model.spec import MIB

log = logging.getLogger("shoal.shipping")

AskEvents = Callable[[int | None], Awaitable[Sequence[SandboxEvent] | int]]


class LogShipping:
    """`ask_events`: as for `Shipper.follow_events`, None where another node sends the events; `logs`: the last output
    of sandboxes that have ended."""

    def __init__(self, shipper: Shipper, connect: Connect, ask_events: AskEvents | None, logs: LogFiles) -> None:
        self._shipper = shipper
        self._follower = Follower(shipper, connect)
        self._ask_events = ask_events
        self._logs = logs
        self._loops: list[asyncio.Task[None]] = []

    async def start(self, living: Collection[str]) -> None:
        """Goes on where an earlier node actor was killed. `living`: the sandboxes that have a container here."""
        self._loops = [tasks.supervise(self._shipper.deliver, "send to the sink")]
        if self._ask_events is not None:
            ask = self._ask_events
            self._loops.append(tasks.supervise(lambda: self._shipper.follow_events(ask), "send events to the sink"))
        for sandbox_id in await asyncio.to_thread(self._shipper.spool.sources):
            if sandbox_id in living:
                self._follower.follow(sandbox_id)
            else:
                await self._finish_from_file(sandbox_id)

    async def begin(self, sandbox_id: str) -> None:
        """A sandbox's command has just started."""
        await self._follower.end(sandbox_id)
        await self._shipper.begin(sandbox_id)
        self._follower.follow(sandbox_id)

    async def finish(self, sandbox_id: str, fd: int, offset: int, data: bytes) -> None:
        """The last output of a sandbox's command, which has ended."""
        await self._follower.end(sandbox_id)
        await self._shipper.finish(sandbox_id, fd, offset, data)

    async def sweep(self, living: Collection[str]) -> None:
        """Forgets sandboxes of which nothing can come any more."""
        await self._follower.keep(living)
        known = await asyncio.to_thread(self._shipper.spool.sources)
        gone = [each for each in known if each not in living and not self._logs.has(each)]
        if gone:
            await asyncio.to_thread(self._shipper.spool.forget, gone)

    def series(self) -> dict[Series, float]:
        return self._shipper.series()

    async def close(self) -> None:
        """What is in the spool stays for the next start. Idempotent."""
        await self._follower.close()
        loops, self._loops = self._loops, []
        await tasks.stop(*loops)
        await asyncio.to_thread(self._shipper.spool.close)

    async def _finish_from_file(self, sandbox_id: str) -> None:
        """It ended while nobody was here to take the rest, which its slot may have saved."""
        for fd in STREAMS:
            with suppress(OSError):
                offset, data = await asyncio.to_thread(self._logs.whole, sandbox_id, fd)
                await self._shipper.finish(sandbox_id, fd, offset, data)


async def open_shipping(
    settings: TelemetrySettings,
    cluster: str,
    hostname: str,
    state: Path,
    connect: Connect,
    ask_events: AskEvents | None,
    logs: LogFiles,
) -> LogShipping | None:
    """What the settings say, not started yet; None where nothing is to be sent. `state`: the node's directory."""
    if settings.sink is None:
        return None
    spool = await asyncio.to_thread(_open_spool, state / "shipping.db", settings.sink_buffer * MIB)
    shipper = Shipper(spool, sink(settings.sink, settings.headers), Names(cluster, hostname))
    return LogShipping(shipper, connect, ask_events, logs)


def _open_spool(file: Path, most: int) -> Spool:
    """A file that is damaged is put aside: what it held is lost, and the node must start."""
    try:
        return Spool(file, most)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # a full disk, say
            raise
        log.exception("%s is damaged: it is put aside, and what waited in it is not sent", file)
        file.replace(file.with_suffix(".damaged"))
        return Spool(file, most)
