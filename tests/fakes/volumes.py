"""Volumes that hold nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.actors.objects import ObjectAccess
from shoal.actors.volumes import VolumeAccess, VolumeKeeper
from shoal.model.errors import Unavailable
from shoal.model.volumes import VolumeUse


@dataclass
class MemoryVolumes(VolumeKeeper):
    """Remembers which volumes there are."""

    made: set[str] = field(default_factory=set)
    fail: bool = False

    def create(self, volume_id: str, size: int | None, files: int | None, storage: ObjectAccess) -> None:
        self.made.add(volume_id)
        if self.fail:
            raise Unavailable("S3 is away")

    def access(self, volume_id: str, storage: ObjectAccess) -> VolumeAccess:
        return VolumeAccess("sqlite3:///none", "http://none")

    def limit(self, volume_id: str, size: int | None, files: int | None, storage: ObjectAccess) -> None:
        assert volume_id in self.made

    def use(self, volume_id: str, storage: ObjectAccess) -> VolumeUse:
        if self.fail:
            raise Unavailable("the database is away")
        return VolumeUse(4096, 1)

    def sync(self) -> None:
        if self.fail:
            raise Unavailable("the database is away")

    def destroy(self, volume_id: str, storage: ObjectAccess) -> None:
        self.made.discard(volume_id)
