"""What a replica reports to the controller: its metrics, entries for the audit log, and when each token was used.

It is kept in memory, bounded, and reported each second. While the controller is away, it waits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque

from prometheus_client import CollectorRegistry, Counter, Histogram

from shoal.cluster.api.request.context import RequestContext
from shoal.model import verbs
from shoal.model.access import AuditEntry
from shoal.model.errors import ShoalError
from shoal.model.metrics import EXEC_SECONDS, Series, flatten
from shoal.transport.contract import Transport

_log = logging.getLogger("shoal.api.reporter")

INTERVAL_S = 1.0
_REPORT_S = 10.0
_BATCH = 1000
_MOST_ENTRIES = 20_000
_MOST_USED = 10_000
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds of the histogram of request durations, in seconds."""

EXEC_BUCKETS_S = (0.001, 0.0015, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.016, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""The same for what an exec takes beside its command's own time."""


class UsageReporter:
    """One replica's reporter. Belongs to one event loop."""

    def __init__(self, transport: Transport, most_entries: int = _MOST_ENTRIES) -> None:
        self.used: dict[str, float] = {}
        self._transport = transport
        self._most = most_entries
        self._entries: deque[AuditEntry] = deque()
        self._flushing = asyncio.Lock()
        self._registry = registry = CollectorRegistry()
        self._reported: dict[Series, float] = {}
        self._counters: dict[str, Counter] = {}
        self._dropped = Counter("shoal_audit_dropped", "Entries that the audit log has lost", registry=registry)
        self._requests = Counter(
            "shoal_http_requests", "Requests answered", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "shoal_http_request_seconds", "Durations of requests", buckets=BUCKETS_S, registry=registry
        )
        self._exec_seconds = Histogram(
            EXEC_SECONDS,
            "What execs through the API took beside their command's own time",
            buckets=EXEC_BUCKETS_S,
            registry=registry,
        )

    def add(self, counter: str, amount: float) -> None:
        """Adds to the counter of this name, such as `shoal_execs_total`; the set of names must be a closed one."""
        if counter not in self._counters:
            text = counter.removeprefix("shoal_").removesuffix("_total").replace("_", " ").capitalize()
            self._counters[counter] = Counter(counter, text, registry=self._registry)
        self._counters[counter].inc(amount)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(method, route, status).inc()
        self._seconds.observe(seconds)

    def executed(self, overhead_s: float) -> None:
        """A command was run in one call, which took so much beside the command's own time."""
        self._exec_seconds.observe(max(0.0, overhead_s))

    def note(self, context: RequestContext) -> None:
        """Enters a request in the audit log."""
        self.enter(context, context.action or "-", context.target, context.outcome)

    def enter(self, context: RequestContext, action: str, target: str | None, outcome: str) -> None:
        """Enters one action of a request in the audit log.

        If there are too many entries, the oldest is dropped and counted.
        """
        who = context.caller
        if len(self._entries) >= self._most:
            self._entries.popleft()
            self._dropped.inc()
        self._entries.append(
            AuditEntry(
                time.time(),
                action,
                outcome,
                who.token,
                context.environment or who.environment,
                None if target is None else target[:256],
                context.request_id,
                context.address,
            )
        )

    async def flush(self) -> None:
        """Reports all there is when it begins; later additions are for the next time, so that it ends on a busy
        replica.

        What could not be reported stays for the next time; raises the error.
        """
        async with self._flushing:
            for _ in range(max(1, math.ceil(len(self._entries) / _BATCH))):
                await self._report()

    async def _report(self) -> None:
        counted = flatten(self._registry)
        counters = {
            series: value - self._reported.get(series, 0.0)
            for series, value in counted.items()
            if value != self._reported.get(series)
        }
        if not (counters or self._entries or self.used):
            return
        entries = [self._entries.popleft() for _ in range(min(_BATCH, len(self._entries)))]
        used, self.used = self.used, {}
        try:
            async with asyncio.timeout(_REPORT_S):
                await self._transport.ask(verbs.report, entries, counters, used)
        except BaseException:
            self._put_back(entries, used)
            raise
        self._reported = counted

    def _put_back(self, entries: list[AuditEntry], used: dict[str, float]) -> None:
        room = max(0, self._most - len(self._entries))
        dropped = max(0, len(entries) - room)
        self._dropped.inc(dropped)
        self._entries.extendleft(reversed(entries[dropped:]))
        self.used = dict([*{**used, **self.used}.items()][-_MOST_USED:])

    async def run(self) -> None:
        """Reports each second, for ever."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.try_flush()

    async def try_flush(self) -> bool:
        """Reports; returns whether that succeeded."""
        try:
            await self.flush()
        except (ShoalError, TimeoutError) as error:
            _log.warning("the controller did not accept the report, which is kept: %s", error)
            return False
        return True
