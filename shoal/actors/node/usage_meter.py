"""What each sandbox of a node uses: the samples of the last hour, and the sums that were not reported yet. Pure: the
caller takes the samples and passes the time.

Where a sandbox runs is charged from its container's start on. Of one that ended between two samples a last one is
taken. A node that is killed loses what was not reported: half a minute.
"""

from __future__ import annotations

import time
from array import array
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from shoal.model.spec import MIB
from shoal.model.usage import POINTS, Amounts, Sample, SandboxLoad, SandboxUsage, SandboxUsageSeries, UsageReport

_WIDTH = len(Sample._fields)
_MOST_ENDED = 256
_KEPT_S = 3600.0


@dataclass(slots=True)
class _Meter:
    """`last`: the newest sample, of the container `key`; `ring`: the samples, one after another. `ended`: no more
    come."""

    key: str
    last: Sample
    ring: array[float] = field(default_factory=lambda: array("d"))
    ended: bool = False

    def keep(self, sample: Sample) -> None:
        self.ring.extend(sample)
        if len(self.ring) > POINTS * _WIDTH:
            del self.ring[:_WIDTH]

    def samples(self) -> list[Sample]:
        return [Sample(*self.ring[at : at + _WIDTH]) for at in range(0, len(self.ring), _WIDTH)]


@dataclass(slots=True)
class UsageMeter:
    """`number`: of the next report; it rises over restarts, too."""

    number: int
    _meters: OrderedDict[str, _Meter] = field(default_factory=OrderedDict)
    _unreported: dict[str, Amounts] = field(default_factory=dict)
    _report: UsageReport | None = None

    def note(self, sandbox_id: str, key: str, began: float, sample: Sample, *, last: bool = False) -> None:
        """A sandbox's container, which began then, was looked at; `last`: before its end."""
        meter = self._meters.get(sandbox_id)
        if meter is None:
            before = Sample(min(began, sample.at), 0.0, sample.memory, sample.disk, 0.0, 0.0)
            meter = self._meters[sandbox_id] = _Meter(key, before)
            meter.keep(before)
            self._unreported.setdefault(sandbox_id, Amounts()).sandboxes += 1
        elif sample.at <= meter.last.at or (meter.ended and began <= meter.last.at):
            return  # it was overtaken by the next one, or by the last
        elif meter.ended or meter.key != key or sample.cpu_s < meter.last.cpu_s:
            # It was stopped and runs again: the kernel counts anew.
            start = min(sample.at, max(meter.last.at, began))
            meter.last = Sample(start, 0.0, sample.memory, sample.disk, 0.0, 0.0)
            meter.key, meter.ended = key, False
        before, meter.last = meter.last, sample
        amounts = self._unreported.setdefault(sandbox_id, Amounts())
        seconds = max(0.0, sample.at - before.at)
        amounts.seconds += seconds
        amounts.cpu_seconds += max(0.0, sample.cpu_s - before.cpu_s)
        amounts.memory_seconds += (before.memory + sample.memory) / 2 / MIB * seconds
        amounts.disk_seconds += (before.disk + sample.disk) / 2 / MIB * seconds
        amounts.network_in += max(0, int(sample.net_in - before.net_in))
        amounts.network_out += max(0, int(sample.net_out - before.net_out))
        meter.keep(sample)
        if last:
            meter.ended = True
            self._meters.move_to_end(sandbox_id)

    def resume(self, sandbox_id: str, key: str, sample: Sample) -> None:
        """The first look at a container that ran before this node actor did: what it used until then has been reported,
        or is lost."""
        meter = self._meters[sandbox_id] = _Meter(key, sample)
        meter.keep(sample)

    def end_all_but(self, running: Collection[str], now: float) -> None:
        """No more samples come of any other sandbox."""
        for sandbox_id, meter in self._meters.items():
            if sandbox_id not in running:
                meter.ended = True
        self._forget(now)

    def clock_set(self, by_s: float) -> None:
        """The machine's clock was set: what was sampled stays as long ago as it was, so that nobody is charged for the
        step."""
        for meter in self._meters.values():
            meter.last = meter.last._replace(at=meter.last.at + by_s)
            for at in range(0, len(meter.ring), _WIDTH):
                meter.ring[at] += by_s

    def knows(self, sandbox_id: str) -> bool:
        return sandbox_id in self._meters

    def usage(self, sandbox_id: str, since: float | None, now: Sample | None = None) -> SandboxUsage:
        """What is known of it; of the samples those after `since`. `now`: a look just taken, which is not kept."""
        meter = self._meters.get(sandbox_id)
        if meter is None:
            return SandboxUsage(sandbox_id)
        samples = meter.samples()
        if now is not None and now.at > meter.last.at:
            samples.append(now)
        last = samples[-1]
        return SandboxUsage(
            sandbox_id,
            at=round(last.at, 3),
            cpu_seconds=round(last.cpu_s, 4),
            memory=round(last.memory / MIB, 2),
            disk=round(last.disk / MIB, 2),
            network_in=int(last.net_in),
            network_out=int(last.net_out),
            series=_series(samples, since),
        )

    def loads(self) -> list[SandboxLoad]:
        """Of all that run, as seen last."""
        found = []
        for sandbox_id, meter in self._meters.items():
            if not meter.ended and len(meter.ring) >= 2 * _WIDTH:
                before, last = Sample(*meter.ring[-2 * _WIDTH : -_WIDTH]), Sample(*meter.ring[-_WIDTH:])
                series = _series([before, last], None)
                if series.at:
                    found.append(SandboxLoad(sandbox_id, *(column[0] for column in _columns(series))))
        return found

    def report(self) -> UsageReport:
        """What was used since the report that was confirmed last; the same again until it is."""
        if self._report is None:
            self._report = UsageReport(self.number, self._unreported)
            self._unreported = {}
            self.number += 1
        # A copy: who is told changes nothing here.
        return UsageReport(self._report.number, {each: replace(a) for each, a in self._report.amounts.items()})

    def confirm(self, number: int) -> None:
        """The report of that number is counted."""
        if self._report is not None and self._report.number == number:
            self._report = None

    def _forget(self, now: float) -> None:
        ended = [sandbox_id for sandbox_id, meter in self._meters.items() if meter.ended]
        for sandbox_id in ended[: max(0, len(ended) - _MOST_ENDED)]:
            del self._meters[sandbox_id]
        for sandbox_id in ended:
            meter = self._meters.get(sandbox_id)
            if meter is not None and now - meter.last.at > _KEPT_S:
                del self._meters[sandbox_id]


def first_report() -> int:
    """A number above those of all node actors that ran here before. By the clock since boot, which nobody sets."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def _columns(series: SandboxUsageSeries) -> tuple[Sequence[float], ...]:
    return series.cpu, series.memory, series.disk, series.network_in, series.network_out


def _series(samples: list[Sample], since: float | None) -> SandboxUsageSeries:
    found = [
        (
            round(after.at, 3),
            round(max(0.0, after.cpu_s - before.cpu_s) / seconds, 4),
            round(after.memory / MIB, 2),
            round(after.disk / MIB, 2),
            round(max(0.0, after.net_in - before.net_in) / seconds, 1),
            round(max(0.0, after.net_out - before.net_out) / seconds, 1),
        )
        for before, after in pairwise(samples)
        if (seconds := after.at - before.at) > 0 and (since is None or after.at > since)
    ]
    return SandboxUsageSeries(*zip(*found, strict=True)) if found else SandboxUsageSeries()
