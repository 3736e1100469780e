"""The accounts: what sandboxes used, summed by hour for each environment and each tag of theirs.

Nodes tell what their sandboxes used twice a minute; here it is added to the sums of the hour, and those that have
changed are written. So a row stands for an hour of an environment or a tag, however many sandboxes and samples there
were. A controller that is killed between a write and its word to the node counts half a minute of that node twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from shoal.actors.controller.accounts import Accounts
from shoal.actors.controller.history import History
from shoal.actors.controller.nodes import Node, Nodes
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.record_writer import RecordWriter
from shoal.actors.controller.store import Change, HourOfUse, Store
from shoal.actors.handles import call
from shoal.model import tasks
from shoal.model.access import ANY_ENVIRONMENT, INSIDE, Caller
from shoal.model.errors import InvalidRequest, ShoalError, Unavailable
from shoal.model.usage import MOST_ROWS, Amounts, SandboxLoad, SandboxUsage, UsageReport, UsageRow, tag_of

log = logging.getLogger("shoal.usage")

EVERY_S = 30.0
HOUR_S = 3600
MOST_VALUES = 1_000
"""Values of one tag in one environment and hour that have sums of their own; the others share one, `OTHERS`."""

OTHERS = "…"

_ANSWER_S = 10.0
_LOADS_S = 2.0
_LOOK_S = 2.0

_Key = tuple[int, str, str, str]
"""Hour, environment, tag's key and value; both empty: the environment itself."""


@dataclass(slots=True)
class UsageAccounts:
    """`clock`: unix seconds; `call`: how actors are called."""

    store: Store
    writer: RecordWriter
    nodes: Nodes
    history: History
    accounts: Accounts
    call: Callable[..., Awaitable[Any]] = call
    clock: Callable[[], float] = time.time
    _sums: dict[_Key, Amounts] = field(default_factory=dict)
    _changed: set[_Key] = field(default_factory=set)
    _values: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    _loads: tuple[float, asyncio.Task[list[SandboxLoad]]] | None = None
    _counted: dict[str, int] = field(default_factory=dict)  # the last report of each node

    async def restore(self) -> None:
        """Takes back the sums of this hour."""
        for row in await self.store.hours_of_use(int(self.clock() // HOUR_S)):
            self._enter((row.hour, row.environment, row.tag, row.value), row.amounts)

    async def turn(self) -> None:
        """Asks all nodes, and writes what has changed."""
        nodes = [node for node in self.nodes.known_nodes() if node.info is not None and node.error is None]
        numbers = await asyncio.gather(*(self._ask(node) for node in nodes))
        await self._write()
        told = ((node, number) for node, number in zip(nodes, numbers, strict=True) if number is not None)
        await asyncio.gather(*(self._confirm(node, number) for node, number in told))
        known = {node.id for node in self.nodes.known_nodes()}
        self._counted = {node_id: number for node_id, number in self._counted.items() if node_id in known}

    async def usage(self, sandbox_id: str, since: float | None, caller: Caller) -> SandboxUsage:
        """What one sandbox uses, or used when it ended."""
        record = await self.history.get(sandbox_id, caller)
        node_id = None if record.started is None else record.started.node_id
        if node_id is None and record.home is not None:
            node_id = self.nodes.of_machine(record.home.machine)
        if node_id is None or not self.nodes.known(node_id):
            return SandboxUsage(sandbox_id)
        try:
            found: SandboxUsage = await self.call(
                self.nodes.handle(node_id), "sandbox_usage", sandbox_id, since, timeout_s=_ANSWER_S
            )
        except ShoalError as error:
            raise Unavailable(f"the node of {sandbox_id} does not answer ({error}); ask again") from None
        return found

    async def loads(self, environment: str | None, caller: Caller) -> list[SandboxLoad]:
        """What sandboxes that run used when their nodes looked last. All nodes are asked at once, and at most every two
        seconds; one that does not answer is left out."""
        if environment is None and caller.environment != ANY_ENVIRONMENT:
            environment = caller.environment
        if environment is not None:
            self.accounts.environment(environment, caller)
        if self._loads is None or time.monotonic() - self._loads[0] >= _LOADS_S:
            asked = tasks.shared(self._ask_loads(), "ask loads")
            self._loads = time.monotonic(), asked
        found = await asyncio.shield(self._loads[1])
        if environment is None:
            return found
        records = ((load, self.history.registry.get(load.sandbox_id)) for load in found)
        return [load for load, record in records if record is not None and record.spec.environment == environment]

    async def sums(
        self, by: str, since: float | None, until: float | None, environment: str | None, caller: Caller
    ) -> list[UsageRow]:
        """The accounts, grouped."""
        tag = tag_of(by)
        for name, value in (("since", since), ("until", until)):
            if value is not None and not 0 <= value <= 1e12:
                raise InvalidRequest(f"{name}: {value!r:.80} are no unix seconds", field=name)
        if environment is None and caller.environment != ANY_ENVIRONMENT:
            environment = caller.environment
        if environment is not None:
            self.accounts.environment(environment, caller)
        first = 0 if since is None else int(since // HOUR_S)
        last = int((self.clock() if until is None else until) // HOUR_S)
        return await self.store.usage(by if tag is None else "tag", tag, first, last, environment, MOST_ROWS)

    # -- inside -------------------------------------------------------------------------------------

    async def _ask_loads(self) -> list[SandboxLoad]:
        nodes = [node for node in self.nodes.known_nodes() if node.info is not None and node.error is None]
        asking = (self.call(node.handle, "sandbox_loads", timeout_s=_LOOK_S) for node in nodes)
        told = await asyncio.gather(*asking, return_exceptions=True)
        return [load for loads in told if isinstance(loads, list) for load in loads]

    async def _ask(self, node: Node) -> int | None:
        """Counts what a node reports; the report's number."""
        try:
            report: UsageReport = await self.call(node.handle, "usage_report", timeout_s=_ANSWER_S)
        except ShoalError as error:
            log.info("node %s does not tell what its sandboxes use: %s", node.id[:8], error)
            return None
        if report.number > self._counted.get(node.id, -1):
            for sandbox_id, amounts in report.amounts.items():
                record = await self._record(sandbox_id)
                if record is not None:
                    self._count(record, amounts)
            self._counted[node.id] = report.number
        return report.number

    async def _record(self, sandbox_id: str) -> SandboxRecord | None:
        try:
            return await self.history.get(sandbox_id, INSIDE)
        except ShoalError:  # it was never put on record, or the store is away
            return None

    async def _confirm(self, node: Node, number: int) -> None:
        try:
            await self.call(node.handle, "confirm_usage", number, timeout_s=_ANSWER_S)
        except ShoalError as error:
            log.info("node %s is not told that its report is counted: %s", node.id[:8], error)

    def _count(self, record: SandboxRecord, amounts: Amounts) -> None:
        hour, environment = int(self.clock() // HOUR_S), record.spec.environment
        for tag, value in [("", ""), *record.tags.items()]:
            key = hour, environment, tag, value
            if key not in self._sums and tag and self._values[hour, environment, tag] >= MOST_VALUES:
                key = hour, environment, tag, OTHERS
            if key not in self._sums:
                self._enter(key, Amounts())
            self._sums[key].add(amounts)
            self._changed.add(key)

    def _enter(self, key: _Key, amounts: Amounts) -> None:
        self._sums[key] = amounts
        self._values[key[:3]] += 1

    async def _write(self) -> None:
        changed, self._changed = self._changed, set()
        if not changed:
            return
        try:
            rows = [HourOfUse(*key, self._sums[key]) for key in changed]
            await self.writer.write(Change(usage=rows))
        except BaseException:
            self._changed |= changed
            raise
        hour = int(self.clock() // HOUR_S)
        past = {key for key in self._sums if key[0] < hour} - self._changed
        self._sums = {key: amounts for key, amounts in self._sums.items() if key not in past}
        self._values = Counter({each: count for each, count in self._values.items() if each[0] >= hour})
