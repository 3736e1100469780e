"""What a caller asks for: the sandbox's spec, and its shape.

Plain frozen dataclasses, so that the processes that only carry a spec around need no validation library; `validate.py` is
where a spec out of a caller's hand is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

NetworkMode = Literal["default", "none"]
Runtime = Literal["runc", "runsc"]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Resources:
    """What a sandbox is sure of (request) and may not exceed (limit).

    CPU in cores, memory and disk in MiB, `gpu` in whole devices, `pids` a count. Requests are Ray resources: they decide
    how many sandboxes fit a node. Limits are the kernel's to enforce.
    """

    cpu_request: float
    cpu_limit: float
    memory_request: int
    memory_limit: int
    disk: int
    pids: int
    gpu: int = 0


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """One sandbox as asked for. `timeout` and `idle_timeout` in seconds (None: no idle limit)."""

    image: str
    resources: Resources
    command: tuple[str, ...] = ()
    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    user: str = ""
    timeout: float = 300.0
    idle_timeout: float | None = None
    pty: bool = False
    network: NetworkMode = "default"
    region: str | None = None
    runtime: Runtime = "runc"
    environment: str = "main"
    idempotency_key: str | None = None

    @property
    def slot_shape(self) -> SlotShape:
        """What must be equal for one slot to serve one spec after another."""
        r = self.resources
        return SlotShape(r.cpu_request, r.memory_request, r.gpu, self.region)

    @property
    def container_shape(self) -> ContainerShape:
        """What must be equal for a warm container to serve this spec: all that is fixed when a container starts."""
        r = self.resources
        return ContainerShape(
            self.image, r.cpu_limit, r.memory_limit, r.disk, r.pids, r.gpu, self.network, self.runtime
        )


@dataclass(frozen=True, slots=True)
class SlotShape:
    """The Ray resources of a sandbox actor. `cpu` in cores, `memory` in MiB."""

    cpu: float
    memory: int
    gpu: int
    region: str | None


@dataclass(frozen=True, slots=True)
class ContainerShape:
    """The properties of a container that cannot change once it runs. Units as in `Resources`."""

    image: str
    cpu: float
    memory: int
    disk: int
    pids: int
    gpu: int
    network: NetworkMode
    runtime: Runtime
