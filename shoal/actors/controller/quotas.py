"""What an environment uses, and whether one more sandbox is within its quota. Pure: the caller passes the time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from shoal.model.access import Quota
from shoal.model.errors import QuotaExceeded
from shoal.model.spec import SandboxSpec

WINDOW_S = 60.0
_SOON_S = 1.0
"""Seconds after which to ask again whether something has ended."""

_MICRO = 1_000_000

SPEC_BYTES = 256 << 20
"""The most bytes that the texts in the specs (commands, variables, tags) of one environment's living sandboxes may
take. The controller holds them in memory, and any number of sandboxes may wait for room."""


@dataclass(slots=True)
class Usage:
    """What the living sandboxes of one environment use together, and when the creates of the last minute were accepted.
    `weight`: bytes of the texts in their specs."""

    sandboxes: int = 0
    memory: int = 0
    weight: int = 0
    _microcores: int = 0  # an integer: a million sums of fractions must come back to zero
    _accepted: deque[float] = field(default_factory=deque)

    @property
    def cpu(self) -> float:
        return self._microcores / _MICRO

    def add(self, spec: SandboxSpec, weight: int) -> None:
        """Adds a living sandbox."""
        self._count(spec, 1)
        self.weight += weight

    def remove(self, spec: SandboxSpec, weight: int) -> None:
        """Removes a sandbox that has ended. `weight`: the same as in `add`."""
        self._count(spec, -1)
        self.weight -= weight

    def rest(self, spec: SandboxSpec) -> None:
        """A persistent sandbox has stopped: it counts, but uses no CPU and no memory."""
        self._use(spec, -1)

    def wake(self, spec: SandboxSpec) -> None:
        """It uses them again, or has ended meanwhile."""
        self._use(spec, 1)

    def accept(self, now: float) -> None:
        """Counts a create that was accepted at `now`."""
        self._accepted.append(now)
        self._forget(now)

    def take_back(self) -> None:
        """Takes back the create that was counted last."""
        if self._accepted:
            self._accepted.pop()

    def creates(self, now: float) -> int:
        """How many were accepted in the last minute."""
        self._forget(now)
        return len(self._accepted)

    def room_in(self, allowed: int, now: float) -> float:
        """Seconds until one more create is within `allowed` a minute; 0 where it is now."""
        self._forget(now)
        if len(self._accepted) < allowed:
            return 0.0
        # If none is allowed, no wait helps: any delay will do.
        return WINDOW_S if allowed == 0 else max(0.0, self._accepted[-allowed] + WINDOW_S - now)

    def as_quota(self, now: float) -> Quota:
        """The usage as a `Quota`."""
        return Quota(self.sandboxes, self.cpu, self.memory, self.creates(now))

    def _count(self, spec: SandboxSpec, sign: int) -> None:
        self.sandboxes += sign
        self._use(spec, sign)

    def _use(self, spec: SandboxSpec, sign: int) -> None:
        self._microcores += sign * round(spec.resources.cpu_limit * _MICRO)
        self.memory += sign * spec.resources.memory_limit

    def _forget(self, now: float) -> None:
        while self._accepted and self._accepted[0] <= now - WINDOW_S:
            self._accepted.popleft()


def check_quota(quota: Quota, usage: Usage, spec: SandboxSpec, now: float) -> None:
    """Raises `QuotaExceeded` for the first bound that one more sandbox like `spec` would break; names it, what is used
    and allowed."""
    if quota.creates_per_minute is not None and (delay := usage.room_in(quota.creates_per_minute, now)) > 0:
        raise _exceeded(
            "creates_per_minute",
            f"{usage.creates(now)} creates were accepted in the last minute "
            f"and {quota.creates_per_minute} are allowed; "
            f"try again in {delay:.1f} s",
            spec,
            usage.creates(now),
            quota.creates_per_minute,
            delay,
        )
    if quota.sandboxes is not None:
        _check_amount(("sandboxes", "sandboxes"), usage.sandboxes, 1, quota.sandboxes, spec)
    check_use(quota, usage, spec)


def check_use(quota: Quota, usage: Usage, spec: SandboxSpec) -> None:
    """As `check_quota`, for what a sandbox that was stopped uses when it runs again."""
    wanted = spec.resources
    for name, used, more, allowed, unit in (
        ("cpu", usage.cpu, wanted.cpu_limit, quota.cpu, "cores"),
        ("memory", usage.memory, wanted.memory_limit, quota.memory, "MiB"),
    ):
        if allowed is not None:
            _check_amount((name, unit), used, more, allowed, spec)


def _check_amount(name: tuple[str, str], used: float, more: float, allowed: float, spec: SandboxSpec) -> None:
    """`name`: the quota's, and its unit."""
    if used + more > allowed + 1e-9:
        raise _exceeded(
            name[0],
            f"{used:g} of {allowed:g} {name[1]} are in use and {more:g} more were asked for; "
            "end some sandboxes, ask for less, or have "
            "the quota raised",
            spec,
            used,
            allowed,
            _SOON_S,
        )


def check_weight(usage: Usage, spec: SandboxSpec, weight: int) -> None:
    """Raises `QuotaExceeded` where the specs of an environment's living sandboxes would be too large together."""
    if usage.weight + weight > SPEC_BYTES:
        raise _exceeded(
            "env",
            f"commands and variables of its living sandboxes are {usage.weight >> 20} of {SPEC_BYTES >> 20} MiB long "
            "and this one's "
            f"{weight >> 10} KiB; end some sandboxes, or put what is large into a file",
            spec,
            usage.weight,
            SPEC_BYTES,
            _SOON_S,
        )


def _exceeded(name: str, why: str, spec: SandboxSpec, used: float, allowed: float, retry_after: float) -> QuotaExceeded:
    return QuotaExceeded(
        f"{name}: the quota of environment {spec.environment!r} is used up: {why}",
        field=name,
        quota=name,
        used=used,
        allowed=allowed,
        retry_after=retry_after,
    )
