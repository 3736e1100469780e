"""The engine contract: what a node needs of the engine that starts its containers. Their root filesystems are the
image store's (`image_store.py`).

Terms
    container   an isolated process tree with its own root filesystem, whose first process is Shoal's agent. Its name is
                its *key* (`c-…`), chosen before it is created. An engine's own names stay inside the engine.
    image       a root filesystem on this node, named by a reference or a digest (`image_store.py`).
    agent       a static program mounted read-only at `AGENT_PATH`, started with `init`; its link to the node is the
                directory `run_dir`, mounted read-only at `RUN_MOUNT`.

Life of a container
    start ──► running ──► exited (its agent ended or was killed, or it was stopped) ──► removed
               │  ▲ ▲                       │
               ▼  │ └─────── restart ───────┘
              paused

    A container is created for one sandbox and never reused by another. An engine starts it with no network but its own
    loopback; the node gives it an interface (or none) through the network namespace of `Container.pid`, again after
    each `restart`: pid and namespace are then others. A runtime with a kernel of its own (`shows_processes`) reads its
    network once, when it starts: for one of those the node makes the namespace ahead, anew for each start, and pins it
    at `ContainerSpec.namespace`.

    A container with `ContainerSpec.keep` may be started again with what it had written, also after the machine was. The
    node sees to it that all files that it mounts are there again, at their paths.

Rules for every engine
    - All methods are async and never block the loop. Blocking libraries go to the engine's own bounded threads.
    - `start` is all or nothing: if it raises or is cancelled, nothing of the container is left.
    - Every container carries `ContainerSpec.labels`; `list` finds containers by them, after any crash of the caller.
    - `remove` is idempotent, kills what runs, and returns once container and root filesystem are gone, whatever
      code inside has left there: trees of any depth, names of any bytes.
    - Errors are of `shoal.model.errors`: `ImageNotFound`, `InvalidRequest` (a limit that the engine cannot keep),
      `Unavailable` (the engine does not answer: nothing happened), `FailedPrecondition` (not possible in this state),
      `NotFound`, `Internal`.
    - Root in a container need not be root on the node. An engine that gives each container a range of user ids of its
      own also creates its user namespace as a user of that range: the kernel charges what is counted inside (inotify,
      timers) to the creator, too, and would count all containers' together if that were root.
    - Who retries: the caller, on `Unavailable` only.

Memory checkpoints, image mounts and disk limits are abilities that only some engines have: `abilities` tells, and a
call without the ability raises `FailedPrecondition` at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from shoal.actors.engines.image_store import ImageInfo, ImageStore
from shoal.actors.engines.travel import TravellingLayers
from shoal.model.errors import FailedPrecondition, ShoalError

AGENT_PATH = "/.shoal/agent"
RUN_MOUNT = "/.shoal/run"


def shows_processes(runtime: str) -> bool:
    """Whether the processes of this runtime's containers are processes of the node, as gVisor's are not."""
    return not runtime.startswith("runsc")


class Ability(StrEnum):
    """An ability that not every engine has."""

    PULL = "pull"  # fetch images by reference from a registry
    PAUSE = "pause"
    CHECKPOINT = "checkpoint"  # memory snapshots
    KILL = "kill"  # `kill` takes less time than `remove`
    IMAGE_MOUNTS = "image_mounts"  # images of one directory, and images mounted into containers that run
    DISK_LIMIT = "disk_limit"  # the kernel holds `ContainerSpec.disk`; else the node watches `disk_usage`


class ContainerState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory or file of the node, visible in the container at `target`."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """A container to start. `cpu`: cores; `memory`, `disk`: bytes (0: no limit); `pids`: a count; `gpu`: whole
    devices; `disk_dir`: where the engine may mount a disk of the container's own: a path for it alone, named after its
    key, which does not exist; `default_env`: variables where the image has none of the name; `keep`: it may be stopped
    and started again, and what it writes outlives that, and a crash of the machine; `namespace`: a file that pins its
    network namespace, at each start another one; None: the engine makes one; `memory_directories`: tmpfs mounts for
    root alone, empty at each start, of `isolation.SECRETS_SIZE` bytes each."""

    key: str
    image: str
    agent: Path
    run_dir: Path
    cpu: float
    memory: int
    pids: int
    disk: int = 0
    disk_dir: Path | None = None
    gpu: int = 0
    runtime: str = "runc"
    hostname: str = "sandbox"
    env: Mapping[str, str] = field(default_factory=dict)
    default_env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    keep: bool = False
    namespace: Path | None = None
    memory_directories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Container:
    """A container as the engine sees it. `pid`: the agent's, in the node's pid namespace; 0 once it exited. `resumed`,
    of one that has just been started: it goes on from memory."""

    key: str
    state: ContainerState
    pid: int = 0
    exit_code: int | None = None
    out_of_memory: bool = False
    created_at: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """What a container uses now. `cpu_s`: seconds since its start; `memory`: bytes, without page cache that can be
    dropped."""

    cpu_s: float
    memory: int
    pids: int


class EventKind(StrEnum):
    EXITED = "exited"
    OUT_OF_MEMORY = "out_of_memory"  # the kernel killed something in it for its memory limit; it may still run


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """An event of a container that the node did not cause."""

    kind: EventKind
    key: str
    exit_code: int | None = None


class Engine(ABC):
    """Starts containers on this node. See the module for the rules that hold for every method."""

    name: str
    abilities: frozenset[Ability]
    runtimes: tuple[str, ...]
    images: ImageStore
    layers: TravellingLayers | None = None
    """What of its images can go to other nodes, and come from them; None: an image stays where it was made."""

    @abstractmethod
    async def open(self) -> None:
        """Connects and learns `abilities` and `runtimes`; `Unavailable` (with the remedy) if the engine does not
        answer."""

    @abstractmethod
    async def close(self) -> None:
        """Closes connections and threads; containers keep running. Idempotent."""

    @abstractmethod
    async def start(self, spec: ContainerSpec) -> Container:
        """Creates the container and starts its agent; returns it running."""

    @abstractmethod
    async def stop(self, key: str) -> None:
        """Kills all its processes and keeps its root filesystem; what it wrote is on the machine's disk then. For one
        with `keep`. Idempotent; `NotFound`."""

    @abstractmethod
    async def restart(self, key: str) -> Container:
        """Starts the agent of a container that has exited, on the root filesystem that it has; returns it running, also
        where it runs already. If it raises, the container is exited as before. `NotFound`."""

    async def kill(self, key: str, *, files_closed: bool = True) -> None:
        """Kills all its processes, for good: what is left of it is to be removed. One that waits in the kernel need not
        have ended yet, but executes nothing more. Not `files_closed`: nor need the kernel have closed their files. No
        event tells of it. Idempotent; `NotFound`. Needs `KILL`."""
        raise FailedPrecondition(f"engine {self.name} has no faster way to end {key} than `remove`", state="no_kill")

    @abstractmethod
    async def remove(self, key: str) -> None:
        """Kills and removes the container, exited ones too. Idempotent."""

    @abstractmethod
    async def forget_disks(self, keep: Collection[str]) -> None:
        """Removes the kept disks of all containers but those of these keys: what a crash left while one was made or
        removed. Called while none is."""

    @abstractmethod
    async def get(self, key: str) -> Container:
        """The container; `NotFound`."""

    @abstractmethod
    async def list(self, labels: Mapping[str, str]) -> list[Container]:
        """All containers that carry all of `labels`, including exited ones, in any order."""

    @abstractmethod
    async def usage(self, key: str) -> Usage:
        """What it uses now; `NotFound`, or `FailedPrecondition` once it exited."""

    async def usages(self, keys: Collection[str]) -> dict[str, Usage]:
        """What those of `keys` that run use now, at once and in a tenth of a millisecond each; without those of which
        that cannot be told so quickly."""
        found: dict[str, Usage] = {}
        for key in keys:
            try:
                found[key] = await self.usage(key)
            except ShoalError:
                continue
        return found

    @abstractmethod
    async def disk_usage(self, key: str, *, limit: int) -> int:
        """Bytes written to its root filesystem. Counting may stop beyond `limit`. Never follows a link or trusts a
        name, and takes milliseconds with `DISK_LIMIT`."""

    @abstractmethod
    async def pause(self, key: str) -> None:
        """Freezes all its processes. Idempotent."""

    @abstractmethod
    async def resume(self, key: str) -> None:
        """Thaws them. Idempotent."""

    async def checkpoint(self, key: str, reference: str | None = None) -> ImageInfo:
        """Makes an image of a container's files and, of the same moment, its memory, and names it. A container that is
        started from it by the same runtime, with the same mounts and limits, goes on where this one was, with the
        agent's connections cut. This one stands still meanwhile, and goes on, its connections cut as well. All or
        nothing. `NotFound`; `FailedPrecondition` without `CHECKPOINT`, or by its runtime."""
        raise FailedPrecondition(f"the engine {self.name} takes no memory of containers", state="no_memory")

    async def mount_image(self, key: str, image: str, path: str) -> None:
        """Has a container that runs see the files of an image (a reference or a digest) at a path; the directory is
        made where it is missing. The container may write there: what it writes counts as written by it and goes with
        it, but is in no image that is made of it. The image stays while it is mounted. After a `restart` the same call
        brings it back, with what was written. Idempotent; if it raises, nothing of it is left.

        `NotFound`, `ImageNotFound`, `AlreadyExists` (field `path`) for another image, `InvalidRequest` (field `path`)
        for what is no directory; `FailedPrecondition` without `IMAGE_MOUNTS`, by its runtime, or once it exited."""
        raise FailedPrecondition(
            f"the engine {self.name} mounts no images into containers that run; set engine = oci on this node",
            state="no_mounts",
        )

    async def unmount_image(self, key: str, path: str) -> None:
        """Takes away an image that was mounted so, with what was written there; who has a file of it open keeps that.
        Idempotent; `NotFound`, `FailedPrecondition` once it exited."""
        raise FailedPrecondition(f"the engine {self.name} mounts no images", state="no_mounts")

    async def suspend(self, key: str) -> None:
        """Saves the memory of a container with `keep` beside what it wrote. It stands still from then on, for a `stop`
        to follow, and each `restart` has it go on from there, its connections cut, until `forget_memory`. Idempotent,
        also where it has exited since. If it raises, it runs on. `NotFound`; `FailedPrecondition` without `CHECKPOINT`,
        by its runtime, or where it has exited."""
        raise FailedPrecondition(f"the engine {self.name} takes no memory of containers", state="no_memory")

    async def forget_memory(self, key: str) -> None:
        """Lets go of what `suspend` saved. If it stands still for that, it goes on. Idempotent; `NotFound`, and as
        `suspend` without `CHECKPOINT`."""
        raise FailedPrecondition(f"the engine {self.name} takes no memory of containers", state="no_memory")

    @abstractmethod
    def events(self, labels: Mapping[str, str]) -> AsyncIterator[EngineEvent]:
        """Events of containers that carry `labels`, from now on, until the iterator is closed. Reconnects by itself;
        `list` finds what happened in between."""
