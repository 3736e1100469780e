"""A pool: sandboxes of one spec that are kept ready, so that a create takes one at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.model.errors import InvalidRequest
from shoal.model.spec import SandboxSpec

GIVEN_WHEN_TAKEN = (
    "command",
    "name",
    "env",
    "idle_timeout",
    "owner_lease",
    "pty",
    "tags",
    "timeout",
    "user",
    "workdir",
)
"""Options that each sandbox taken from a pool may have of its own: they are set without a restart. All others are fixed
when its container starts, or decide where it is."""

NOT_OF_A_POOL = ("command", "env", "idempotency_key", "name", "owner_lease", "pty")
"""Options that a pool's spec may not have. Of the rest in `GIVEN_WHEN_TAKEN` it has defaults."""


@dataclass(frozen=True, slots=True)
class PoolUse:
    """What there is of a pool now. `ready`: to be taken; `making`: being made; `in_use`: living sandboxes of its spec;
    `taken`, `missed`: creates that found one ready, and that did not, since the controller started; `problem`: why
    there are fewer than there should be."""

    ready: int = 0
    making: int = 0
    in_use: int = 0
    taken: int = 0
    missed: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool of an environment. `created_at` in unix seconds."""

    name: str
    environment: str
    spec: SandboxSpec
    min_ready: int
    max_ready: int
    created_at: float
    use: PoolUse = field(default_factory=PoolUse)


def check_size(min_ready: object, max_ready: object, most: int | None = None) -> None:
    """Raises `InvalidRequest` for sizes that no pool can have. `most`: the cluster's limit, None where not known."""
    for name, value in (("min_ready", min_ready), ("max_ready", max_ready)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidRequest(f"{name}: {value!r:.80} is no whole number; give one", field=name)
        if value < 0:
            raise InvalidRequest(f"{name}: {value} is negative; give 0 or more", field=name)
        if most is not None and value > most:
            raise InvalidRequest(
                f"{name}: a pool keeps at most {most:,} ready (`limits.pool_size`); ask for fewer", field=name
            )
    assert isinstance(min_ready, int)
    assert isinstance(max_ready, int)
    if min_ready > max_ready:
        raise InvalidRequest(
            f"min_ready: {min_ready} is above max_ready, {max_ready}; lower it, or raise max_ready", field="min_ready"
        )


def check_pool_spec(spec: SandboxSpec) -> None:
    """Raises `InvalidRequest` for a spec with what belongs to one sandbox only."""
    for name in NOT_OF_A_POOL:
        if getattr(spec, name):
            raise InvalidRequest(f"{name}: a pool has none; give it when you take a sandbox", field=name)
