"""Volumes. `name`: a volume's name or id; `VolumeNotFound`."""
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from shoal.model.access import Scope
from shoal.model.info import SandboxInfo
from shoal.model.verbs.verb import VOLUME_S, Retry, verb
from shoal.model.volumes import VERSION_S, VolumeInfo, VolumesUse


@verb(Scope.RUN, "POST /v1/volumes", audit="volume.create", retry=Retry.UNANSWERED, takes=VOLUME_S)
def create_volume(
    name: str,
    environment: str,
    size: int | None = None,
    files: int | None = None,
    ephemeral: bool = False,
    exist_ok: bool = False,
) -> VolumeInfo:
    """A new volume, which holds at most `size` bytes and `files` files (None: no limit). `ephemeral`: it is deleted
    once no sandbox has mounted it for five minutes. `exist_ok`: the one of that name, if there is one.

    Raises `InvalidRequest`, `AlreadyExists`, `QuotaExceeded`, `FailedPrecondition` where there can be none, and
    `Unavailable`; nothing is left then."""


@verb(Scope.READ, "GET /v1/volumes", many="volumes")
def volumes(environment: str | None, deleted: bool = False) -> list[VolumeInfo]:
    """The volumes of an environment, or (None) all that the caller may see, with what each held when it was last
    measured; `deleted`: those that can be restored."""


@verb(Scope.READ, "GET /v1/volumes/{name}", takes=VOLUME_S)
def volume(name: str, environment: str, use: bool = False) -> VolumeInfo:
    """One; `use`: with what it holds, which takes a fifth of a second."""


@verb(Scope.READ, "GET /v1/environments/{name}/volumes", takes=VOLUME_S)
def volumes_use(name: str) -> VolumesUse:
    """What all volumes of an environment hold together, beside its quota; `EnvironmentNotFound`. Those that may have
    changed since are measured, for a minute at most."""


@verb(Scope.RUN, "PUT /v1/volumes/{name}/limits", audit="volume.limit", takes=VOLUME_S)
def limit_volume(name: str, environment: str, size: int | None, files: int | None) -> VolumeInfo:
    """Changes what it may hold. What it holds beyond that stays."""


@verb(Scope.RUN, "DELETE /v1/volumes/{name}", audit="volume.delete", retry=Retry.NEVER)
def delete_volume(name: str, environment: str, now: bool = False) -> VolumeInfo:
    """Nobody finds it any more, and its name is free. Sandboxes that have it mounted keep it. Its content is removed
    after `volumes.grace` seconds, or (`now`) at once, but not while it is mounted."""


@verb(Scope.RUN, "POST /v1/volumes/{name}/restore", audit="volume.restore")
def restore_volume(name: str, environment: str) -> VolumeInfo:
    """Takes the deletion of a volume back, by its id, or of the last that had the name; `AlreadyExists` if another
    has it now."""


@verb(Scope.RUN, "POST /v1/volumes/{name}/commit", takes=VOLUME_S)
def commit_volume(name: str, environment: str) -> VolumeInfo:
    """Returns once all that was written and closed in it is durable, and another reader has seen it; `Unavailable`
    where that could not be shown."""


@verb(Scope.RUN, "POST /v1/volumes/{name}/open", takes=VOLUME_S)
def open_volume(name: str, environment: str, other: str | None = None) -> SandboxInfo:
    """A sandbox of the cluster's own through which the volume's files are read and written: they are at `/volume`, and
    those of the volume `other`, if one is named, at `/other`. It can be used for nothing else, and ends when nobody has
    used it for a minute."""


@verb(Scope.RUN, "PUT /v1/volumes/{name}/name", audit="volume.rename")
def rename_volume(name: str, environment: str, to: str) -> VolumeInfo:
    """Gives it another name; sandboxes that have it mounted keep it. `InvalidRequest`, `AlreadyExists`."""


@verb(
    Scope.RUN,
    "POST /v1/volumes/{name}/versions",
    audit="volume.snapshot",
    retry=Retry.NEVER,
    takes=VERSION_S,
)
def snapshot_volume(name: str, environment: str, version: str) -> VolumeInfo:
    """Keeps all that is closed in it as a version, which shares its data. `InvalidRequest`, `AlreadyExists`,
    `QuotaExceeded`, `Unavailable`; nothing is left then."""


@verb(
    Scope.RUN,
    "POST /v1/volumes/{name}/versions/{version}/revert",
    audit="volume.revert",
    takes=VERSION_S,
)
def revert_volume(name: str, environment: str, version: str) -> VolumeInfo:
    """Replaces all files of it by those of a version, at once; the version stays. `FailedPrecondition` (state
    `mounted`) while a sandbox has it mounted; `VolumeNotFound` (field `version`)."""


@verb(
    Scope.RUN,
    "DELETE /v1/volumes/{name}/versions/{version}",
    audit="volume.version.delete",
    retry=Retry.NEVER,
    takes=VERSION_S,
)
def delete_version(name: str, environment: str, version: str) -> VolumeInfo:
    """Removes a version; `VolumeNotFound` (field `version`)."""
