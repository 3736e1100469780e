"""What a replica has to tell the cluster: what it counted, what is for the audit log, which tokens were used when.

Kept in memory, bounded, and reported each second; while the controller is away it waits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from bisect import bisect_left
from collections import Counter, deque

from shoal.cluster.api.request.context import RequestContext
from shoal.model import verbs
from shoal.model.access import AuditEntry
from shoal.model.errors import ShoalError
from shoal.transport.contract import Transport

_log = logging.getLogger("shoal.api.reporter")

INTERVAL_S = 1.0
_REPORT_S = 10.0
_BATCH = 1000
_MOST_ENTRIES = 20_000
_MOST_USED = 10_000
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histogram of how long requests take."""


class UsageReporter:
    """One replica's reporter. Belongs to one event loop."""

    def __init__(self, transport: Transport, most_entries: int = _MOST_ENTRIES) -> None:
        self.used: dict[str, float] = {}
        self._transport = transport
        self._most = most_entries
        self._entries: deque[AuditEntry] = deque()
        self._counters: Counter[str] = Counter()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._durations = [0] * (len(BUCKETS_S) + 1)
        self._seconds = 0.0
        self._flushing = asyncio.Lock()

    def add(self, counter: str, amount: float) -> None:
        """Adds to a counter, `name` or `name{label="value"}`; the set of names must be a closed one."""
        self._counters[counter] += amount  # type: ignore[assignment]  # a Counter holds floats too

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests[method, route, status] += 1
        self._durations[bisect_left(BUCKETS_S, seconds)] += 1
        self._seconds += seconds

    def note(self, context: RequestContext) -> None:
        """Enters in the audit log what a request did."""
        self.enter(context, context.action or "-", context.target, context.outcome)

    def enter(self, context: RequestContext, action: str, target: str | None, outcome: str) -> None:
        """Enters one thing, where a request did several. The oldest give way where there are too many, and are counted."""
        who = context.caller
        if len(self._entries) >= self._most:
            self._entries.popleft()
            self._counters["shoal_audit_dropped_total"] += 1
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
        """Reports what there is as it begins: what comes meanwhile is for the next time, so it ends however busy the replica is.

        What could not be said stays for the next time, too; raises what reporting raised.
        """
        async with self._flushing:
            if self._entries or self.used or self._counters or self._requests:
                for _ in range(max(1, math.ceil(len(self._entries) / _BATCH))):
                    await self._report()

    async def _report(self) -> None:
        entries = [self._entries.popleft() for _ in range(min(_BATCH, len(self._entries)))]
        used, self.used = self.used, {}
        counters = self._taken()
        try:
            async with asyncio.timeout(_REPORT_S):
                await self._transport.ask(verbs.report, entries, counters, used)
        except BaseException:
            self._put_back(entries, counters, used)
            raise

    def _taken(self) -> dict[str, float]:
        """All counters by their names, which start at nothing again."""
        counters: Counter[str] = self._counters
        for (method, route, status), count in self._requests.items():
            counters[f'shoal_http_requests_total{{method="{method}",route="{route}",status="{status}"}}'] += count
        if any(self._durations):
            below = 0
            for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self._durations, strict=True):
                below += count
                counters[f'shoal_http_request_seconds_bucket{{le="{bound}"}}'] += below
            counters["shoal_http_request_seconds_count"] += below
            counters["shoal_http_request_seconds_sum"] += self._seconds  # type: ignore[assignment]  # a Counter holds floats too
        self._counters, self._requests = Counter(), Counter()
        self._durations, self._seconds = [0] * (len(BUCKETS_S) + 1), 0.0
        return dict(counters)

    def _put_back(self, entries: list[AuditEntry], counters: dict[str, float], used: dict[str, float]) -> None:
        for name, amount in counters.items():
            self._counters[name] += amount  # type: ignore[assignment]
        room = max(0, self._most - len(self._entries))
        dropped = max(0, len(entries) - room)
        if dropped:
            self._counters["shoal_audit_dropped_total"] += dropped
        self._entries.extendleft(reversed(entries[dropped:]))
        self.used = dict([*{**used, **self.used}.items()][-_MOST_USED:])

    async def run(self) -> None:
        """Reports each second, for as long as the replica lives."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.try_flush()

    async def try_flush(self) -> bool:
        """Reports, and says whether it went through."""
        try:
            await self.flush()
        except (ShoalError, TimeoutError) as error:
            _log.warning("the controller did not take the report, which is kept: %s", error)
            return False
        return True
