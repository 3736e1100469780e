"""The contract for volumes: who makes and removes them, and how a node mounts one.

Terms
    volume    a JuiceFS file system of its own, named by its id: its data in the object storage, below `<id>/`, its
              metadata in a database that no other volume shares.
    access    how to mount one, with credentials: what a node gets from the controller.
    keeper    the head's side: makes, measures and removes volumes.

Why one file system for each volume, and not one for all with a directory each: nothing of one can lead to another, a
quota and the usage are the file system's own, the metadata of a small volume stays small, a broken one breaks no other,
and a removal is a prefix and a database that go as a whole. A mount costs 30 MB either way, because each volume of a
node has a process of its own, so that one that hangs keeps no other waiting.

Rules for every keeper
    - Methods block: they run in threads. They are idempotent.
    - `Unavailable`: the object storage or the database does not answer, and the same call may be repeated.
      `FailedPrecondition` with the remedy: something is missing on this machine.

The implementation is `shoal.cluster.volumes`; the actors are given one and never import it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from shoal.actors.objects import ObjectAccess
from shoal.model.volumes import VolumeUse


@dataclass(frozen=True, slots=True)
class VolumeAccess:
    """How to mount a volume. `metadata`: the URL of its database, without the password; `bucket`: the URL of the object
    storage; `env`: what a JuiceFS process gets as its environment, with the credentials; `only_on_head`: its metadata
    is a file of the head."""

    metadata: str
    bucket: str
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    only_on_head: bool = False


@dataclass(frozen=True, slots=True)
class VersionChange:
    """What a node is to do to the versions of a volume, all by their ids: `make` one, `revert` to one, or only `tidy`.
    `keep`: those that there are; others are removed first."""

    do: Literal["make", "revert", "tidy"]
    version: str
    keep: tuple[str, ...]


class VolumeKeeper(ABC):
    """The head's side. See the module for the rules. `storage`: where the data is."""

    only_on_head: bool = False
    """Whether no other machine can mount volumes, because their metadata is in files of the head."""

    @abstractmethod
    def create(self, volume_id: str, size: int | None, files: int | None, storage: ObjectAccess) -> None:
        """Makes a volume. `size`: bytes that it may hold, `files`: files and directories; None: no limit."""

    @abstractmethod
    def access(self, volume_id: str, storage: ObjectAccess) -> VolumeAccess:
        """How to mount it."""

    @abstractmethod
    def limit(self, volume_id: str, size: int | None, files: int | None, storage: ObjectAccess) -> None:
        """Changes what it may hold; mounts follow within seconds."""

    @abstractmethod
    def use(self, volume_id: str, storage: ObjectAccess) -> VolumeUse:
        """What it holds."""

    @abstractmethod
    def sync(self) -> None:
        """Returns once all metadata that was written is on disk."""

    @abstractmethod
    def destroy(self, volume_id: str, storage: ObjectAccess) -> None:
        """Removes its data and its metadata. No node has it mounted."""
