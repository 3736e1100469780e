"""A sandbox's spec: each field of a sandbox is written here, once, with its type, bounds, default and meaning.

The arguments of `Sandbox.create`, the API's JSON, the options of `shoal run`, the rows of the store and the checks
follow from these fields. To add a field, add it here, add its name and type to `client/create_options.py`, and act on
it where it matters.

These are plain dataclasses, because a process that only carries a spec must not load pydantic, which costs a sandbox
actor 6 MB and 0.1 CPU-seconds. The bounds are annotations: they stay unevaluated text until `spec_model.py` reads them,
with the names of `field_types.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from shoal.model.pickled import by_fields
from shoal.model.secrets import directories

if TYPE_CHECKING:
    from pydantic import Field

    from shoal.model.field_types import (
        AbsolutePath,
        Command,
        Cores,
        IdempotencyKey,
        Mebibytes,
        Mounts,
        Name,
        OwnerLease,
        Region,
        Regions,
        Seconds,
        Secrets,
        Tags,
        Variables,
    )

NetworkMode = Literal["default", "none"]
Runtime = Literal["runc", "runsc"]
Restart = Literal["no", "on-failure", "always"]
Placement = Literal["pack", "spread"]

MIB = 1024 * 1024


@by_fields
@dataclass(frozen=True, slots=True)
class Resources:
    """What a sandbox is sure of (request) and may not exceed (limit).

    Requests are Ray resources: they decide how many sandboxes fit a node. Limits are the kernel's to enforce. A user
    writes a request and its limit as one option: `cpu` or `memory`.
    """

    cpu_request: Cores
    """Cores that it is sure of"""
    cpu_limit: Cores
    """Cores that it may use"""
    memory_request: Mebibytes
    """MiB that it is sure of"""
    memory_limit: Annotated[Mebibytes, Field(ge=16)]
    """MiB that it may use"""
    disk: Annotated[int, Field(gt=0, le=1 << 30)]
    """MiB that it may write to its root filesystem"""
    pids: Annotated[int, Field(gt=1, le=1 << 22)]
    """Processes and threads at once"""
    gpu: Annotated[int, Field(ge=0, le=64)] = 0
    """Whole devices"""


@by_fields
@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """One sandbox as asked for."""

    image: Annotated[str, Field(min_length=1, max_length=512, examples=["python:3.12"])]
    """A reference such as `shoal/base` or `python:3.12`"""
    resources: Resources
    command: Command = ()
    """Its own command; it ends with it. None: it lives until it is ended"""
    name: Annotated[Name, Field(examples=["web"])] | None = None
    """Unique among the living of its environment: 1 to 64 letters, digits, dots, dashes and underscores"""
    tags: Tags = field(default_factory=dict)
    """To find it by; up to 64"""
    env: Variables = field(default_factory=dict)
    """Environment variables. They are not told again"""
    volumes: Mounts = ()
    """What it mounts of what outlives it, each at a path of its own"""
    secrets: Secrets = ()
    """Secrets, as environment variables or files in memory. Their values are not told again"""
    workdir: AbsolutePath | None = None
    """An absolute path; made where it is missing"""
    user: Annotated[str, Field(max_length=256)] = ""
    """A name, `uid` or `uid:gid`"""
    hostname: Annotated[str, Field(max_length=63, pattern="^[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?$")] = "sandbox"
    """Its host name: up to 63 letters, digits and dashes"""
    timeout: Seconds | None = 300.0
    """Seconds from its start to its end; a persistent one stops then, and by default has no such limit"""
    idle_timeout: Seconds | None = None
    """Seconds without anything to do after which it ends, or stops if it is persistent; none: no such limit"""
    persistent: bool = False
    """Whether it can be stopped and started again, with its disk. It stops where others would end"""
    restart: Restart = "no"
    """After what a persistent one starts again by itself: `no`, `on-failure`, or `always` but when asked to stop"""
    autostart: bool = True
    """Whether a request to an http tunnel of a persistent one that is stopped starts it"""
    owner_lease: OwnerLease | None = None
    """Seconds after which it ends unless its creator, as the Python client does by itself, renews; none: no lease"""
    pty: bool = False
    """Whether its own command has a terminal"""
    network: NetworkMode = "default"
    """`default`: the public internet; `none`: nothing"""
    regions: Regions = ()
    """Where it may run: one region, or several with the preferred ones first; none: anywhere"""
    zone: Region | None = None
    """The zone of the region in which it must run; none: any"""
    placement: Placement = "pack"
    """`pack`: on the fullest node that has room; `spread`: on the emptiest"""
    wait_for_capacity: bool = True
    """Whether it may wait for room; if not, a create that finds none fails at once"""
    runtime: Runtime = "runc"
    """What isolates it; `runsc` is gVisor"""
    environment: Name = "main"
    """The environment; by default the token's, or `main` for a token of all"""
    idempotency_key: IdempotencyKey | None = None
    """The same key gives the same sandbox: 1 to 128 printable ASCII characters, with no space at the ends"""

    @property
    def slot_shape(self) -> SlotShape:
        """What must be equal for one slot to serve one spec after another."""
        r = self.resources
        return SlotShape(r.cpu_request, r.memory_request, r.gpu)

    @property
    def container_shape(self) -> ContainerShape:
        """What must be equal for a warm container to serve this spec: all that is fixed when a container starts."""
        r = self.resources
        return ContainerShape(
            self.image,
            r.cpu_limit,
            r.memory_limit,
            r.disk,
            r.pids,
            r.gpu,
            self.network,
            self.runtime,
            self.hostname,
            self.persistent,
            directories(self.secrets),
        )

    @property
    def is_as_prepared(self) -> bool:
        """Whether a container that was started for its shape, before anybody asked for it, is all that it wants: nobody
        has to tell its agent or its node more. One in gVisor may have gone on from another sandbox's memory, with what
        that was told; and being told begins the time of one that may not be idle."""
        told = self.command or self.env or self.workdir or self.user or self.volumes or self.secrets
        return not told and self.runtime == "runc" and self.idle_timeout is None and not self.persistent


@dataclass(frozen=True, slots=True)
class SlotShape:
    """The Ray resources of a sandbox actor. `cpu` in cores, `memory` in MiB, `gpu` in whole devices."""

    cpu: float
    memory: int
    gpu: int = 0


@dataclass(frozen=True, slots=True)
class ContainerShape:
    """The properties of a container that cannot change once it runs. Units as in `Resources`; `memory_directories`:
    those of secrets, which are in memory and not on its disk."""

    image: str
    cpu: float
    memory: int
    disk: int
    pids: int
    gpu: int
    network: NetworkMode
    runtime: Runtime
    hostname: str = "sandbox"
    persistent: bool = False
    memory_directories: tuple[str, ...] = ()
