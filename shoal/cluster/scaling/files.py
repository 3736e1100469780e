"""What `shoal cluster up`, the scaler and Ray's monitor tell one another, in `<state_dir>/scaling` (0700).

    cluster.json  the cluster as the operator described it, checked; written by `up`
    ray.yaml      Ray's autoscaler configuration; written by `up` and the scaler, read by Ray in each of its rounds
    fleet.json    the machines, and how launches went; written by Ray's monitor
    memory.json   what the scaler remembers from one decision to the next
    plan.json     what it decided, for `shoal cluster status`

Each file has one writer at a time and is replaced as a whole. Times in them are of this machine's clock since its
start, so they outlive the processes and not the machine.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from shoal.cluster.scaling.deciding import Memory
from shoal.cluster.scaling.fleet import FleetState
from shoal.cluster.scaling.spec import CLUSTER_SPEC, ClusterSpec
from shoal.model.cluster_file import write_private
from shoal.model.errors import FailedPrecondition

T = TypeVar("T")

_FLEET: TypeAdapter[FleetState] = TypeAdapter(FleetState)
_MEMORY: TypeAdapter[Memory] = TypeAdapter(Memory)


@dataclass(frozen=True, slots=True)
class ScalingFiles:
    """The files below one state directory."""

    directory: Path

    @staticmethod
    def below(state_dir: Path) -> ScalingFiles:
        return ScalingFiles(state_dir / "scaling")

    @property
    def cluster(self) -> Path:
        return self.directory / "cluster.json"

    @property
    def ray(self) -> Path:
        return self.directory / "ray.yaml"

    @property
    def plan(self) -> Path:
        return self.directory / "plan.json"

    def read_cluster(self) -> ClusterSpec | None:
        """The cluster's description; None where `shoal cluster up` was not run."""
        try:
            return CLUSTER_SPEC.validate_json(self.cluster.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise FailedPrecondition(
                f"{self.cluster} is not of this version of Shoal; run `shoal cluster up` with your file again: {error}"
            ) from None

    def write_cluster(self, cluster: ClusterSpec) -> None:
        self._write("cluster.json", CLUSTER_SPEC.dump_python(cluster, mode="json"))

    def read_fleet(self) -> FleetState:
        """Empty where there is none, or none that can be read."""
        return _read(self.directory / "fleet.json", _FLEET) or FleetState()

    def write_fleet(self, state: FleetState) -> None:
        self._write("fleet.json", asdict(state))

    def read_memory(self) -> Memory:
        return _read(self.directory / "memory.json", _MEMORY) or Memory()

    def write_memory(self, memory: Memory) -> None:
        self._write("memory.json", asdict(memory))

    def read_plan(self) -> dict[str, Any] | None:
        try:
            plan: dict[str, Any] = json.loads(self.plan.read_bytes())
        except (OSError, ValueError):
            return None
        return plan

    def write_plan(self, plan: dict[str, Any]) -> None:
        self._write("plan.json", plan)

    def forget(self, *, description: bool) -> None:
        """Removes what was said of machines that are gone; with `description`, all."""
        for path in self.directory.glob("*"):
            if description or path != self.cluster:
                path.unlink(missing_ok=True)
        if description and self.directory.exists():
            self.directory.rmdir()

    def _write(self, name: str, data: Any) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self.directory / name, json.dumps(data, default=_plain).encode() + b"\n")


def _read(path: Path, what: TypeAdapter[T]) -> T | None:
    try:
        return what.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(f"{value!r} is no JSON")
