"""The JSON of volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Path
from pydantic import Field

from shoal.cluster.api.schema.control import Sent, Told
from shoal.model.field_types import Name
from shoal.model.ids import NAME
from shoal.model.volumes import LEAST_SIZE

VolumeName = Annotated[
    str, Path(description="The volume's name or id.", max_length=64, pattern=f"^{NAME.pattern}$", examples=["data"])
]

VersionName = Annotated[
    str, Path(description="The version's name.", max_length=64, pattern=f"^{NAME.pattern}$", examples=["before"])
]

_Size = Annotated[int, Field(ge=LEAST_SIZE, multiple_of=LEAST_SIZE, le=1 << 60, examples=[10 << 30])]
_Files = Annotated[int, Field(ge=1, le=1 << 60)]


class VolumeCreate(Sent):
    """A volume to make."""

    name: Annotated[Name, Field(examples=["data"])]
    """Unique in its environment"""
    environment: Name | None = None
    """By default the token's, or `main` for a token of all"""
    size: _Size | None = None
    """The most bytes that it holds, in whole GiB; none: no limit"""
    files: _Files | None = None
    """The most files and directories; none: no limit"""
    ephemeral: bool = False
    """Delete it once no sandbox has mounted it for five minutes"""
    exist_ok: bool = False
    """Answer with the one of that name, if there is one"""


class VolumeLimits(Sent):
    """What a volume may hold."""

    environment: Name | None = None
    """The volume's; by default the token's, or `main` for a token of all"""
    size: _Size | None = None
    """Bytes, in whole GiB; none: no limit"""
    files: _Files | None = None
    """Files and directories; none: no limit"""


class VolumeOpen(Sent):
    """Volumes to open."""

    environment: Name | None = None
    """By default the token's, or `main` for a token of all"""
    other: str | None = Field(None, max_length=64, pattern=f"^{NAME.pattern}$")
    """Another volume of the environment, to copy files to: it is at `/other`"""


class VolumeRename(Sent):
    """A volume's new name."""

    environment: Name | None = None
    """By default the token's, or `main` for a token of all"""
    to: Annotated[Name, Field(examples=["data-2"])]
    """Unique in its environment"""


class VersionIn(Sent):
    """A version to make."""

    environment: Name | None = None
    """By default the token's, or `main` for a token of all"""
    version: Annotated[Name, Field(examples=["before-cleaning"])]
    """Unique in its volume"""


class VolumeIn(Sent):
    """Where a volume is."""

    environment: Name | None = None
    """By default the token's, or `main` for a token of all"""


class VolumeUse(Told):
    """What a volume holds."""

    bytes: int
    """In blocks of 4 KiB"""
    files: int
    """Files and directories"""
    at: float | None
    """When that was measured, in unix seconds"""


class VolumesUse(Told):
    """What the volumes of an environment hold together, also those that are deleted and can be restored."""

    environment: str
    volumes: int
    bytes: int
    """In blocks of 4 KiB"""
    files: int
    """Files and directories"""
    size_limits: int
    """What the volumes' limits of bytes add up to"""
    files_limits: int
    """The same of files"""
    size_quota: int | None
    """The most that the limits of bytes may add up to; none: anything"""
    files_quota: int | None
    """The same of files"""
    unmeasured: int
    """How many could not be measured now; of those the last measurement counts"""


class VolumeVersion(Told):
    """All files of a volume as they were."""

    name: str
    id: str
    created_at: float


class Volume(Told):
    """A volume. Times in unix seconds."""

    id: str
    name: str
    environment: str
    created_at: float
    size: int | None
    """The most bytes that it holds"""
    files: int | None
    """The most files and directories"""
    ephemeral: bool
    deleted_at: float | None
    """Since when it waits to be removed"""
    ready: bool
    use: VolumeUse | None
    """What it holds, now where that was asked for, else when it was last measured"""
    versions: Sequence[VolumeVersion]
    """The oldest first"""


class Volumes(Told):
    """Volumes, by environment and name."""

    volumes: Sequence[Volume]
