"""What sandboxes use: one of them over the last hour, and sums for accounting.

Plain values. CPU in seconds of a core, memory and disk in MiB, network in bytes as the sandbox sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from shoal.model.errors import InvalidRequest

INTERVAL_S = 10.0
"""How often a node samples its sandboxes."""

POINTS = 360
"""The most samples that are kept of a sandbox: an hour."""

MOST_ROWS = 10_000
"""The most rows of one look at the accounts."""


class Sample(NamedTuple):
    """One look at a sandbox. `at` in unix seconds; `cpu_s`, `net_in`, `net_out`: since its start; `memory` and `disk`
    in bytes, at that moment."""

    at: float
    cpu_s: float
    memory: float
    disk: float
    net_in: float
    net_out: float


@dataclass(frozen=True, slots=True)
class SandboxUsageSeries:
    """How much a sandbox used at the times `at` (unix seconds). `cpu`: cores; `memory`, `disk`: MiB; network in bytes a
    second; all but memory and disk on average since the time before."""

    at: Sequence[float] = ()
    cpu: Sequence[float] = ()
    memory: Sequence[float] = ()
    disk: Sequence[float] = ()
    network_in: Sequence[float] = ()
    network_out: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class SandboxUsage:
    """What a sandbox uses now, or used when it ended. `cpu_seconds`, `network_in`, `network_out` (bytes): since it
    started; `memory`, `disk`: MiB. All None where its node does not know: it never ran, ended more than an hour ago, or
    the node was restarted since. `series`: the last hour, in points of `interval` seconds."""

    sandbox_id: str
    at: float | None = None
    cpu_seconds: float | None = None
    memory: float | None = None
    disk: float | None = None
    network_in: int | None = None
    network_out: int | None = None
    interval: float = INTERVAL_S
    series: SandboxUsageSeries = field(default_factory=SandboxUsageSeries)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SandboxLoad:
    """What a sandbox that runs used when its node looked last, some seconds ago. `cpu`: cores; `memory`, `disk`: MiB;
    network in bytes a second."""

    sandbox_id: str
    cpu: float
    memory: float
    disk: float
    network_in: float
    network_out: float


@dataclass(slots=True)
class Amounts:
    """What was used in some time. `sandboxes`: how many began in it; `seconds`: for which they ran; `memory_seconds`,
    `disk_seconds`: MiB times seconds; `network_in`, `network_out`: bytes."""

    sandboxes: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_seconds: float = 0.0
    disk_seconds: float = 0.0
    network_in: int = 0
    network_out: int = 0

    def add(self, more: Amounts) -> None:
        for name in AMOUNTS:
            setattr(self, name, getattr(self, name) + getattr(more, name))


AMOUNTS = tuple(each.name for each in fields(Amounts))


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Node to controller: what its sandboxes used since the report before, by id. The same until it is confirmed."""

    number: int
    amounts: dict[str, Amounts]


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One line of the accounts. `key`: what it is of, by what was asked: the environment, the day (`2026-01-31`, in
    UTC), the hour (`2026-01-31T15`), or a tag's value. The rest: as in `Amounts`."""

    key: str
    sandboxes: int
    seconds: float
    cpu_seconds: float
    memory_seconds: float
    disk_seconds: float
    network_in: int
    network_out: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


BY = ("environment", "day", "hour")


def tag_of(by: str) -> str | None:
    """The tag's key in `tag:KEY`, None for another grouping; `InvalidRequest` for what is none."""
    kind, _, key = by.partition(":")
    if kind == "tag" and 0 < len(key) <= 256:
        return key
    if by not in BY:
        raise InvalidRequest(f"by: {by[:80]!r}; give {', '.join(BY)}, or tag:KEY", field="by")
    return None
