"""A volume as clients and the controller see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shoal.model.errors import InvalidRequest, VolumeNotFound

FRESH_S = 0.5
"""Seconds for which a node may show attributes and names of a volume as they were before another node changed them."""

LEAST_SIZE = 1 << 30
"""Bytes: a limit of a volume is in whole GiB."""

VERSION_S = 900.0
"""The longest that making a version of a volume, or going back to one, may take."""

MOST_VERSIONS = 100
"""Of one volume."""


@dataclass(frozen=True, slots=True)
class VolumeUse:
    """What a volume holds. `bytes`: in whole blocks of 4 KiB; `files`: files and directories; `at`: when that was
    measured, in unix seconds."""

    bytes: int = 0
    files: int = 0
    at: float | None = None


@dataclass(frozen=True, slots=True)
class VolumesUse:
    """What the volumes of an environment hold together (`bytes`, `files`), also those that are deleted and can be
    restored. `size_limits`, `files_limits`: what their limits add up to; `size_quota`, `files_quota`: what that may be
    (None: anything). `unmeasured`: how many volumes could not be measured now; of those the last measurement counts."""

    environment: str
    volumes: int
    bytes: int
    files: int
    size_limits: int
    files_limits: int
    size_quota: int | None = None
    files_quota: int | None = None
    unmeasured: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class VolumeVersion:
    """All files of a volume as they were at a time (`created_at`, unix seconds). `id`: its directory, beside them."""

    name: str
    id: str
    created_at: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """A volume of an environment. Times in unix seconds. `size`: bytes that it may hold, `files`: files and directories
    (None: no limit); `ephemeral`: it goes once nothing has used it for some minutes; `deleted_at`: since when it waits
    to be removed, and can be restored; `ready`: it has been made; `use`: what it holds, now where that was asked for,
    else when it was last measured;
    `versions`: the oldest first."""

    id: str
    name: str
    environment: str
    created_at: float
    size: int | None = None
    files: int | None = None
    ephemeral: bool = False
    deleted_at: float | None = None
    ready: bool = True
    use: VolumeUse | None = None
    versions: tuple[VolumeVersion, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VolumeInfo:
        """The inverse of `to_dict`; `KeyError` or `TypeError` where `data` is no volume."""
        use = data.get("use")
        versions = tuple(VolumeVersion(**each) for each in data.get("versions", ()))
        known = {name: value for name, value in data.items() if name in _FIELDS}
        return cls(**{**known, "use": None if use is None else VolumeUse(**use), "versions": versions})

    def version(self, name: str) -> VolumeVersion:
        """The version of that name; `VolumeNotFound`."""
        found = next((each for each in self.versions if each.name == name), None)
        if found is None:
            raise VolumeNotFound(
                f"version: volume {self.name} has no version {name:.80}; `shoal volume versions {self.name}` lists "
                "those that it has",
                field="version",
            )
        return found


_FIELDS = frozenset(VolumeInfo.__dataclass_fields__)


def check_limits(size: object, files: object) -> None:
    """Raises `InvalidRequest` for limits that no volume can have."""
    for name, value, least in (("size", size, LEAST_SIZE), ("files", files, 1)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidRequest(f"{name}: {value!r:.80} is no whole number; give one from {least:,} on", field=name)
        if not least <= value <= 1 << 60:
            raise InvalidRequest(f"{name}: {value!r:.80} is out of range; give at least {least:,}, or none", field=name)
    if isinstance(size, int) and size % LEAST_SIZE:
        raise InvalidRequest(f"size: {size:,} bytes are not whole GiB; give a multiple of {LEAST_SIZE:,}", field="size")
