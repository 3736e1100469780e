"""The engine contract: what a node needs of whatever starts its containers.

Terms
    container   an isolated process tree with a root filesystem of its own, whose first process is Shoal's agent. Shoal's name
                for it is its *key* (`c-…`), chosen before it is created; engines may have names of their own and keep them to themselves.
    image       a root filesystem on this node, named by a reference.
    agent       a static program mounted read-only at `AGENT_PATH`, started with `init`; its link to the node is the
                directory `run_dir`, mounted read-only at `RUN_MOUNT`.

Life of a container
    start ──► running ──► exited (its agent ended or was killed) ──► removed
                 │  ▲
                 ▼  │
               paused

    A container is created for one sandbox and never reused by another. An engine starts it with no network but its own
    loopback; the node gives it an interface (or none) through the network namespace of `Container.pid`.

Rules for every engine
    - All methods are async and never block the loop. Blocking libraries go to the engine's own bounded threads.
    - `start` is all or nothing: when it raises or is cancelled, nothing of the container is left.
    - Everything carries the labels given in `ContainerSpec.labels`; `list` finds by them, after any crash of the caller.
    - `remove` is idempotent, kills what runs, and returns once container, root filesystem and mounts are gone.
    - Errors are of `shoal.model.errors`: `ImageNotFound`, `InvalidRequest` (a limit the engine can't keep), `Unavailable` (the engine
      does not answer: nothing happened), `FailedPrecondition` (not possible in this state), `NotFound`, `Internal`.
    - Who retries: the caller, on `Unavailable` only.

Memory checkpoints and disk quotas are abilities that only some engines have: `abilities` tells, and a call without the ability raises
`FailedPrecondition` at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

AGENT_PATH = "/.shoal/agent"
RUN_MOUNT = "/.shoal/run"


class Ability(StrEnum):
    """What not every engine can do."""

    PULL = "pull"  # fetch images by reference from a registry
    PAUSE = "pause"
    CHECKPOINT = "checkpoint"  # memory snapshots
    DISK_QUOTA = "disk_quota"  # the file system enforces `ContainerSpec.disk`; else the node watches `disk_usage`


class ContainerState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory or file of the node's, seen in the container at `target`."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image on this node. `env`, `user` and `workdir` are the defaults that it gives to processes. Size in bytes."""

    reference: str
    digest: str
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    workdir: str = "/"
    size: int = 0


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """One container to start. `cpu` in cores, `memory` and `disk` in bytes (0: no limit), `pids` a count, `gpu` whole devices."""

    key: str
    image: str
    agent: Path
    run_dir: Path
    cpu: float
    memory: int
    pids: int
    disk: int = 0
    gpu: int = 0
    runtime: str = "runc"
    hostname: str = "sandbox"
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()


@dataclass(frozen=True, slots=True)
class Container:
    """A container as the engine sees it. `pid` is its agent's in the node's pid namespace (0 once it exited)."""

    key: str
    state: ContainerState
    pid: int = 0
    exit_code: int | None = None
    out_of_memory: bool = False
    created_at: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a container uses now. CPU in seconds since its start, memory in bytes without page cache that can be dropped."""

    cpu_s: float
    memory: int
    pids: int


class EventKind(StrEnum):
    EXITED = "exited"
    OUT_OF_MEMORY = "out_of_memory"  # the kernel killed something in it for its memory limit; it may still run


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """Something that happened to a container by itself."""

    kind: EventKind
    key: str
    exit_code: int | None = None


class Engine(ABC):
    """Starts containers on this node. See the module for the rules that hold for every method."""

    name: str
    abilities: frozenset[Ability]
    runtimes: tuple[str, ...]

    @abstractmethod
    async def open(self) -> None:
        """Connects and learns `abilities` and `runtimes`; `Unavailable` (with the remedy) where the engine does not answer."""

    @abstractmethod
    async def close(self) -> None:
        """Lets go of connections and threads; containers run on. Idempotent."""

    @abstractmethod
    async def image(self, reference: str, *, pull: bool = True) -> ImageInfo:
        """The image, pulled if it is not here and `pull` is set. `ImageNotFound` with the reason where it can't be had,
        `InvalidRequest` (field `image`) for what is no reference, `Unavailable` for a registry that does not answer."""

    @abstractmethod
    async def start(self, spec: ContainerSpec) -> Container:
        """Creates the container and starts its agent; returns it running."""

    @abstractmethod
    async def remove(self, key: str) -> None:
        """Kills and removes. Of one that is not there: nothing."""

    @abstractmethod
    async def get(self, key: str) -> Container:
        """The container; `NotFound` where there is none."""

    @abstractmethod
    async def list(self, labels: Mapping[str, str]) -> list[Container]:
        """All containers that carry all of `labels`, exited ones too, in no order."""

    @abstractmethod
    async def usage(self, key: str) -> Usage:
        """What it uses now; `NotFound`, or `FailedPrecondition` once it exited."""

    @abstractmethod
    async def disk_usage(self, key: str, *, limit: int) -> int:
        """Bytes written to its root filesystem. Counting may stop once beyond `limit`. Never follows a link, never trusts a name."""

    @abstractmethod
    async def pause(self, key: str) -> None:
        """Freezes all its processes. Idempotent."""

    @abstractmethod
    async def resume(self, key: str) -> None:
        """Thaws them. Idempotent."""

    @abstractmethod
    def events(self, labels: Mapping[str, str]) -> AsyncIterator[EngineEvent]:
        """Events of containers that carry `labels`, from now on, until the iterator is closed. Reconnects by itself; what happened in
        between is found by `list`."""
