"""A pool: sandboxes of one spec that are kept ready, so that a create takes one at once.

In JSON its spec is as in `sandbox_json.py`, and `use` beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from shoal.model.errors import InvalidRequest
from shoal.model.options import PLAIN, default_of, options_of, spec_of
from shoal.model.sandbox_json import HIDDEN
from shoal.model.spec import SandboxSpec

GIVEN_WHEN_TAKEN = frozenset(
    {
        "env",
        "idempotency_key",
        "idle_timeout",
        "name",
        "owner_lease",
        "pty",
        "secrets",
        "tags",
        "timeout",
        "user",
        "volumes",
        "workdir",
    }
)
"""Options that each sandbox taken from a pool may have of its own: they are set without a restart. All others are fixed
when its container starts, or decide where it is."""

NOT_OF_A_POOL = (
    "command",
    "env",
    "idempotency_key",
    "name",
    "owner_lease",
    "persistent",
    "pty",
    "restart",
    "autostart",
    "volumes",
)
"""Options that a pool's spec may not have: they are of one sandbox."""

_PLAIN = ("name", "environment", "min_ready", "max_ready", "created_at")


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
class PoolInfo:
    """A pool of an environment. `created_at` in unix seconds."""

    name: str
    environment: str
    spec: SandboxSpec
    min_ready: int
    max_ready: int
    created_at: float
    use: PoolUse = field(default_factory=PoolUse)

    @property
    def id(self) -> str:
        """Its name among the pools of all environments."""
        return f"{self.environment}/{self.name}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        spec = {name: value for name, value in options_of(self.spec).items() if name not in HIDDEN}
        return {**{name: getattr(self, name) for name in _PLAIN}, "spec": spec, "use": asdict(self.use)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PoolInfo:
        """The inverse of `to_dict`; `KeyError`, `ValueError` or `TypeError` where `data` is no pool."""
        return cls(
            **{name: data[name] for name in _PLAIN},
            spec=spec_of({**data["spec"], "tags": dict(data["spec"]["tags"])}),
            use=PoolUse(**{name: value for name, value in data.get("use", {}).items() if name in _USE}),
        )


_USE = frozenset(PoolUse.__dataclass_fields__)


def check_size(min_ready: object, max_ready: object, most: int | None = None) -> None:
    """Raises `InvalidRequest` for sizes that no pool can have. `most`: the cluster's limit, None where not known."""
    for name, value in (("min_ready", min_ready), ("max_ready", max_ready)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidRequest(f"{name}: {value!r:.80} is no whole number; give one", field=name)
        if value < 0:
            raise InvalidRequest(f"{name}: {value:,} is negative; give 0 or more", field=name)
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
        if getattr(spec, name) != default_of(PLAIN[name]):
            remedy = "give it when you take a sandbox" if name in GIVEN_WHEN_TAKEN else "leave it out"
            if name in ("persistent", "restart", "autostart"):
                remedy = "a persistent sandbox is not taken from one: use Sandbox.create for it"
            raise InvalidRequest(f"{name}: a pool has none; {remedy}", field=name)
    of_mounts = [mount.secret for mount in spec.volumes if mount.secret is not None]
    if any(use.name is None for use in (*spec.secrets, *of_mounts)):
        raise InvalidRequest(
            "secrets: a pool has stored ones only; store it, or give it when you take a sandbox", field="secrets"
        )
