"""Looks at what the sandboxes of a node use: all of them in one pass over files of the kernel, without a process and
without a question to an engine's daemon."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shoal.actors.engines.contract import Ability, Engine, Usage
from shoal.actors.network.links import port_name
from shoal.actors.node.containers import Containers
from shoal.actors.node.disk_watch import DiskWatch
from shoal.actors.node.records import ContainerRecord
from shoal.actors.node.usage_meter import UsageMeter
from shoal.model import tasks
from shoal.model.usage import Sample, SandboxUsage

_NET_DEV = Path("/proc/net/dev")

_STEP_S = 1.0
"""Seconds between two looks by which a clock must have moved to have been set."""

Traffic = Mapping[str, tuple[int, int]]
"""By interface: (bytes that its sandbox received, bytes that it sent)."""


@dataclass(slots=True)
class UsageSampler:
    """`clock`: unix seconds; `steady`: seconds by a clock that nobody sets, `_ahead` of which the other is."""

    engine: Engine
    containers: Containers
    disk_watch: DiskWatch
    meter: UsageMeter
    clock: Callable[[], float] = time.time
    read_traffic: Callable[[], Traffic] = field(default=lambda: traffic(_NET_DEV.read_text("ascii", "replace")))
    steady: Callable[[], float] = time.monotonic
    _opened: float = field(init=False)
    _ahead: float = field(init=False)
    _began: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._opened = self.clock()
        self._ahead = self._opened - self.steady()

    def begin(self, sandbox_id: str) -> None:
        """A sandbox has just got a container here, or its container runs again."""
        self._began[sandbox_id] = self.clock()

    async def turn(self) -> None:
        """Takes a sample of every sandbox that runs here."""
        self._follow_clock()
        records = [record for record in self.containers.records.values() if _runs(record)]
        for record, sample in await self._look(records):
            self._note(record, sample)
        here = {record.sandbox_id for record in self.containers.records.values() if record.sandbox_id is not None}
        self._began = {sandbox_id: began for sandbox_id, began in self._began.items() if sandbox_id in here}
        self.meter.end_all_but(here, self.clock())

    def _follow_clock(self) -> None:
        """Moves what was noted along with a clock that was set."""
        step_s = self.clock() - self.steady() - self._ahead
        if abs(step_s) < _STEP_S:
            return
        self._ahead += step_s
        self._opened += step_s
        self._began = {sandbox_id: began + step_s for sandbox_id, began in self._began.items()}
        self.meter.clock_set(step_s)

    def settle(self, key: str) -> None:
        """A container is about to end: a last sample is taken meanwhile, for which nobody waits. The kernel keeps its
        figures until it is removed."""
        record = self.containers.records.get(key)
        if record is not None and _runs(record):
            tasks.shared(self._settle(record), "take a last sample")

    async def usage(self, sandbox_id: str, since: float | None) -> SandboxUsage:
        """What is known of a sandbox, now if it runs here."""
        record = self.containers.of_sandbox(sandbox_id)
        if record is None or not _runs(record):
            return self.meter.usage(sandbox_id, since)
        found = await self._look([record])
        now = found[0][1] if found else None
        if now is not None and not self.meter.knows(sandbox_id):
            self._note(record, now)
        return self.meter.usage(sandbox_id, since, now)

    async def _settle(self, record: ContainerRecord) -> None:
        for known, sample in await self._look([record]):
            self._note(known, sample, last=True)

    def _note(self, record: ContainerRecord, sample: Sample, *, last: bool = False) -> None:
        assert record.sandbox_id is not None
        began = self._began.get(record.sandbox_id, record.created_at)
        if not self.meter.knows(record.sandbox_id) and began < self._opened:
            self.meter.resume(record.sandbox_id, record.key, sample)
        else:
            self.meter.note(record.sandbox_id, record.key, began, sample, last=last)

    async def _look(self, records: Sequence[ContainerRecord]) -> list[tuple[ContainerRecord, Sample]]:
        if not records:
            return []
        used = await self.engine.usages([record.key for record in records])
        now = self.clock()
        sizes, network = await asyncio.to_thread(lambda: (self._sizes(records), self.read_traffic()))
        found = []
        for record in records:
            usage: Usage | None = used.get(record.key)
            if usage is not None:
                received, sent = network.get(port_name(record.key), (0, 0))
                sample = Sample(now, usage.cpu_s, usage.memory, sizes.get(record.key, 0), received, sent)
                found.append((record, sample))
        return found

    def _sizes(self, records: Sequence[ContainerRecord]) -> dict[str, int]:
        """Bytes on the disks of containers, where that is known without a count."""
        if Ability.DISK_LIMIT not in self.engine.abilities:
            return dict(self.disk_watch.sizes)
        sizes: dict[str, int] = {}
        for record in records:
            point = self.containers.disk_point(record.key)
            try:
                if point.stat().st_dev != point.parent.stat().st_dev:
                    status = os.statvfs(point)
                    sizes[record.key] = (status.f_blocks - status.f_bfree) * status.f_frsize
            except OSError:
                continue  # it has just gone, or has no disk of its own
        return sizes


def _runs(record: ContainerRecord) -> bool:
    return record.sandbox_id is not None and record.ready


def traffic(net_dev: str) -> dict[str, tuple[int, int]]:
    """Out of the text of `/proc/net/dev`. What the node's side of an interface sends, its sandbox receives."""
    found: dict[str, tuple[int, int]] = {}
    for line in net_dev.splitlines():
        name, colon, rest = line.partition(":")
        columns = rest.split()
        if colon and len(columns) >= 9:
            found[name.strip()] = int(columns[8]), int(columns[0])
    return found
