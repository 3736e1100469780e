"""A kind of mount: how what a `MountSpec` of one kind names gets onto this machine.

Terms
    mount     one FUSE file system of the node, served by a helper. All containers of the node that mount the same thing
              share it, by its identity, and see a directory of it each.
    helper    the program that serves it, in the foreground, in a session of its own. It outlives the node actor.
    point     where it is mounted on the node; `Helper.inside` is what of it containers see.

Life of a mount
    wanted ──► starting ──► mounted ──► unused ──(a minute)──► unmounted
                              │  ▲
                              ▼  │ killed or hung for long: ended by force, started again, put into its containers again
                            broken

Rules for every kind
    - `identity` is a short name (letters, digits, dashes), the same for all specs that may share one mount: whether it
      is read-only, its path in the sandbox and its sub-path are not in it. Credentials that differ must give another.
    - `helper` may ask the controller. It raises what the creator of the sandbox shall be told: `NotFound`,
      `FailedPrecondition` with the remedy, `Unavailable`.
    - Credentials go into `Helper.env` or a file below `Helper.directory`, never among the arguments, which all accounts
      of the machine may read. They are not logged. Nothing of them is in what containers see.
    - The helper mounts with `allow_other`, `nosuid`, `nodev`, and ends by itself once its mount is unmounted, with all
      written.
    - A kind never blocks the loop, and touches files below the point only by `threads.within`: a mount may hang.

To add a kind: its name in `model.mounts.MountKindName`, its fields in `MountSpec` and their checks in `check_mounts`,
an implementation here, and a line in `wiring.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shoal.actors.volumes import VersionChange
from shoal.model.errors import FailedPrecondition
from shoal.model.mounts import MountSpec


@dataclass(frozen=True, slots=True)
class Helper:
    """A helper to start. `env`: all of its environment beside `PATH` and `HOME`; `inside`: the directory below the
    point that containers see, made where it is missing; empty: the whole; `ready_s`: how long it may take to mount;
    `group`: the group that it runs as; None: the node's."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    inside: str = ""
    ready_s: float = 30.0
    group: int | None = None


class MountKind(ABC):
    """One kind. See the module for the rules."""

    name: str

    @abstractmethod
    def identity(self, spec: MountSpec) -> str:
        """Which mount of the node serves the spec."""

    @abstractmethod
    async def helper(self, spec: MountSpec, point: Path, directory: Path) -> Helper:
        """What serves it at `point`. `directory`: for caches and files of the helper, 0700; it is removed with the
        mount."""

    @abstractmethod
    async def commit(self, spec: MountSpec, point: Path, directory: Path) -> None:
        """Returns once all that was written and closed through the mount is durable, and seen elsewhere;
        `Unavailable` where that could not be shown."""

    def answers(self, spec: MountSpec, directory: Path) -> bool:
        """Whether what is behind the mount answers, where its root may answer without. Blocks, in a thread of its own,
        as long as that takes: calls into the mount are taken to hang for as long. False is only told."""
        return True

    def remains(self, pid: int) -> Sequence[Path]:
        """Files elsewhere that a helper of that pid leaves where it is killed."""
        return ()

    async def change_versions(self, point: Path, change: VersionChange) -> None:
        """Makes, restores or removes versions of what is mounted; `FailedPrecondition` for kinds that have none."""
        raise FailedPrecondition(f"a {self.name} has no versions", state="no_versions")
