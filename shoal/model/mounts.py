"""What a sandbox mounts of what outlives it: `SandboxSpec.volumes` holds one `MountSpec` for each mount.

Plain dataclasses, as in `spec.py`: slots carry them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol, get_args

from shoal.model.errors import InvalidRequest
from shoal.model.validate import text_size

MountKindName = Literal["volume"]

MOST_MOUNTS = 32
"""Mounts of one sandbox."""

_LONGEST = 4095
_KEPT = ("/proc", "/sys", "/dev", "/.shoal")
"""What a container needs for itself: nothing is mounted there or below."""


@dataclass(frozen=True, slots=True)
class MountSpec:
    """One mount. What of the fields after `kind` counts depends on the kind."""

    path: str
    """Where it is in the sandbox: an absolute path; made where it is missing"""
    read_only: bool = False
    """Whether the sandbox may only read it"""
    sub_path: str = ""
    """Which directory of it; the whole where it is empty. Made where it is missing, unless read-only"""
    kind: MountKindName = "volume"
    """`volume`"""
    volume: str = ""
    """The id or name of a volume of the sandbox's environment"""


class Mountable(Protocol):
    """What may stand in `Sandbox.create(volumes={path: …})`."""

    def mount_at(self, path: str) -> MountSpec: ...


_KINDS: dict[str, type] = {each.name: bool if each.name == "read_only" else str for each in fields(MountSpec)}


def mount_of(data: Any) -> MountSpec:
    """A mount out of JSON; `InvalidRequest`."""
    if isinstance(data, MountSpec):
        return data
    given = isinstance(data, Mapping) and "path" in data
    known = given and all(isinstance(value, _KINDS.get(name, ())) for name, value in data.items())
    if known and data.get("kind", "volume") in get_args(MountKindName):
        return MountSpec(**data)
    raise InvalidRequest(
        f"volumes: {data!r:.200} is no mount; give an object with path, volume, sub_path, read_only", field="volumes"
    )


def mounts_of(value: Any) -> tuple[MountSpec, ...]:
    """The mounts that a caller gave: by path, or as a list; `InvalidRequest`."""
    if isinstance(value, Mapping):
        return tuple(_at(path, source) for path, source in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(mount_of, value))
    raise InvalidRequest(
        f'volumes: {type(value).__name__} is no mapping; give a dict such as {{"/data": volume}}', field="volumes"
    )


def _at(path: Any, source: Any) -> MountSpec:
    if isinstance(source, str):
        return MountSpec(str(path), volume=source)
    mount_at = getattr(source, "mount_at", None)
    if mount_at is None:
        raise InvalidRequest(
            f"volumes: {type(source).__name__} at {str(path)!r:.80} is no volume; give a Volume or its name",
            field="volumes",
        )
    mounted: MountSpec = mount_at(str(path))
    return mounted


def to_dicts(mounts: Iterable[MountSpec]) -> list[dict[str, Any]]:
    """The mounts, JSON-ready."""
    return [asdict(each) for each in mounts]


def in_order(mounts: Iterable[MountSpec]) -> list[MountSpec]:
    """The mounts in the order in which they are made: what is mounted below another comes after it."""
    return sorted(mounts, key=lambda each: each.path)


def check_mounts(field: str, value: Sequence[Mapping[str, Any] | MountSpec]) -> None:
    """Raises `InvalidRequest` for mounts that cannot be, together or each by itself."""
    taken: set[str] = set()
    for mount in map(mount_of, value):
        _check_path(field, mount.path)
        _check_sub_path(field, mount.sub_path)
        if mount.path in taken:
            raise InvalidRequest(f"{field}: two are at {mount.path:.200}; give each a path of its own", field=field)
        taken.add(mount.path)
        if not mount.volume:
            raise InvalidRequest(f"{field}: {mount.path:.200} names no volume; name one", field=field)


def _check_path(field: str, path: str) -> None:
    size = text_size(field, path, "a path")
    if not path.startswith("/") or path != posixpath.normpath(path) or path.startswith("//") or size > _LONGEST:
        raise InvalidRequest(
            f"{field}: {path!r:.200} is not a plain absolute path; leave out '.', '..' and slashes too many",
            field=field,
        )
    if path == "/" or any(path == kept or path.startswith(f"{kept}/") for kept in _KEPT):
        raise InvalidRequest(
            f"{field}: nothing can be mounted at {path:.200}, which the sandbox needs itself; choose another path",
            field=field,
        )


def _check_sub_path(field: str, sub_path: str) -> None:
    if not sub_path:
        return
    size = text_size(field, sub_path, "sub_path")
    plain = sub_path == posixpath.normpath(sub_path) and not sub_path.startswith("/")
    if not plain or sub_path.split("/")[0] in (".", "..") or size > _LONGEST:
        raise InvalidRequest(
            f"{field}: sub_path {sub_path!r:.200} is not a plain relative path; leave out '/' at its ends, '.', '..'",
            field=field,
        )
