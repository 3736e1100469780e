"""What a machine can hold at all, and whether any can hold a request. Pure.

Others wait for room; a request that no machine could ever hold is refused here, with the name of the field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf

from shoal.model.errors import InvalidRequest, Unavailable
from shoal.model.spec import SandboxSpec


@dataclass(frozen=True, slots=True)
class Machine:
    """A node's capacity. `cpu_shares`, `memory_shares` (MiB): what Ray may hand out as requests; `cores`, `memory`:
    what it has; `pids`: the most processes of all its sandboxes together; `disk`: MiB of the file system that holds
    their disks, whatever of it is free."""

    cores: float
    memory: int
    cpu_shares: float
    memory_shares: int
    gpus: int
    region: str | None
    runtimes: tuple[str, ...]
    pids: int
    zone: str | None = None
    disk: float = inf


_Fits = Callable[[SandboxSpec, Machine], bool]
_Remedy = Callable[[SandboxSpec, Sequence[Machine]], str]

_CHECKS: tuple[tuple[str, _Fits, _Remedy], ...] = (
    (
        "region",
        lambda spec, m: not spec.regions or m.region in spec.regions,
        lambda spec, ms: f"regions: {_names(m.region for m in ms)}",
    ),
    (
        "zone",
        lambda spec, m: spec.zone is None or m.zone == spec.zone,
        lambda spec, ms: f"zones{' there' if spec.regions else ''}: {_names(m.zone for m in ms)}",
    ),
    (
        "runtime",
        lambda spec, m: spec.runtime in m.runtimes,
        lambda spec, ms: f"there are: {_names(n for m in ms for n in m.runtimes)}",
    ),
    (
        "gpu",
        lambda spec, m: m.gpus >= spec.resources.gpu,
        lambda spec, ms: f"the most a node has is {max(m.gpus for m in ms)}",
    ),
    (
        "cpu",
        lambda spec, m: spec.resources.cpu_limit <= m.cores and spec.resources.cpu_request <= m.cpu_shares,
        lambda spec, ms: (
            f"the largest node has {max(m.cores for m in ms):g} cores "
            f"and gives {max(m.cpu_shares for m in ms):g} in requests"
        ),
    ),
    (
        "memory",
        lambda spec, m: spec.resources.memory_limit <= m.memory and spec.resources.memory_request <= m.memory_shares,
        lambda spec, ms: (
            f"the largest node has {max(m.memory for m in ms)} MiB "
            f"and gives {max(m.memory_shares for m in ms)} in requests"
        ),
    ),
    (
        "pids",
        lambda spec, m: spec.resources.pids <= m.pids,
        lambda spec, ms: f"the most that a node gives all its sandboxes together is {max(m.pids for m in ms)}",
    ),
    (
        "disk",
        lambda spec, m: spec.resources.disk <= m.disk,
        lambda spec, ms: f"the largest node's file system has {max(m.disk for m in ms):.0f} MiB",
    ),
)
"""Field, whether a machine meets it, and what is said where none does."""


def check_fits(spec: SandboxSpec, machines: Sequence[Machine]) -> None:
    """Raises `InvalidRequest` for the first field that none of the remaining machines can meet. `machines`: those that
    live, and one of each type that could be launched."""
    left = list(machines)
    if not left:
        raise Unavailable("the cluster has no node that answers yet; try again")
    for field, fits, remedy in _CHECKS:
        remaining = [m for m in left if fits(spec, m)]
        if not remaining:
            raise InvalidRequest(f"{field}: no node can meet it; {remedy(spec, left)}", field=field)
        left = remaining


def _names(values: Iterable[str | None]) -> str:
    return ", ".join(sorted({v for v in values if v is not None})) or "none"
