"""What a sandbox mounts of what outlives it: `SandboxSpec.volumes` holds one `MountSpec` for each mount.

Plain dataclasses, as in `spec.py`: slots carry them.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Protocol, get_args

from shoal.model.errors import InvalidRequest
from shoal.model.secrets import SecretUse, check_use, secret_use
from shoal.model.validate import text_size

MountKindName = Literal["volume", "bucket"]

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
    """Which directory of a volume; the whole where it is empty. Made where it is missing, unless read-only"""
    kind: MountKindName = "volume"
    """`volume`, or `bucket`: a bucket of a user's own"""
    volume: str = ""
    """The id or name of a volume of the sandbox's environment"""
    bucket: str = ""
    """The name of a bucket"""
    prefix: str = ""
    """What is mounted of it: what is below this directory"""
    endpoint: str = ""
    """The URL of its S3 service; empty: AWS"""
    region: str = ""
    """The bucket's region; empty: as the service says"""
    secret: SecretUse | None = None
    """Its credentials (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`); none: it is open to all"""
    access: str = ""
    """For nodes, in place of the secret: what to ask the controller for"""


class Mountable(Protocol):
    """What may stand in `Sandbox.create(volumes={path: …})`."""

    def mount_at(self, path: str) -> MountSpec: ...


_KINDS: dict[str, type] = {each.name: bool if each.name == "read_only" else str for each in fields(MountSpec)}
_OF_BUCKETS = ("bucket", "prefix", "endpoint", "region")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ENDPOINT = re.compile(r"https?://[^/\s@]+/?")
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


def mount_of(data: Any) -> MountSpec:
    """A mount out of JSON; `InvalidRequest`."""
    if isinstance(data, MountSpec):
        return data
    if isinstance(data, Mapping) and "path" in data:
        plain = {name: value for name, value in data.items() if name != "secret"}
        secret = data.get("secret")
        known = all(isinstance(value, _KINDS.get(name, ())) for name, value in plain.items())
        if known and data.get("kind", "volume") in get_args(MountKindName):
            return MountSpec(**plain, secret=None if secret is None else secret_use("volumes", secret))
    shown = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__  # a value may be a secret
    raise InvalidRequest(
        f"volumes: {shown!s:.200} is no mount; give an object with path, volume, sub_path, read_only", field="volumes"
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
    """The mounts, JSON-ready, as they are told and asked for."""
    return [_to_dict(each) for each in mounts]


def to_rows(mounts: Iterable[MountSpec]) -> list[dict[str, Any]]:
    """The mounts, JSON-ready, as the store keeps them: with what is sealed. `ValueError` before it is."""
    return [
        {**asdict(replace(each, secret=None)), "secret": None if each.secret is None else each.secret.to_row()}
        for each in mounts
    ]


def from_rows(rows: Iterable[Mapping[str, Any]]) -> tuple[MountSpec, ...]:
    """The inverse of `to_rows`."""
    return tuple(
        replace(
            mount_of({**row, "secret": None}),
            secret=None if row.get("secret") is None else SecretUse.from_row(row["secret"]),
        )
        for row in rows
    )


def _to_dict(mount: MountSpec) -> dict[str, Any]:
    found = {"path": mount.path, "read_only": mount.read_only, "kind": mount.kind}
    if mount.kind == "volume":
        return {**found, "sub_path": mount.sub_path, "volume": mount.volume}
    found |= {name: getattr(mount, name) for name in _OF_BUCKETS}
    return found if mount.secret is None else {**found, "secret": mount.secret.to_dict()}


def in_order(mounts: Iterable[MountSpec]) -> list[MountSpec]:
    """The mounts in the order in which they are made: what is mounted below another comes after it."""
    return sorted(mounts, key=lambda each: each.path)


def check_mounts(field: str, value: Sequence[Mapping[str, Any] | MountSpec]) -> None:
    """Raises `InvalidRequest` for mounts that cannot be, together or each by itself."""
    taken: set[str] = set()
    for mount in map(mount_of, value):
        check_mount_path(field, mount.path)
        _check_sub_path(field, mount.sub_path)
        if mount.path in taken:
            raise InvalidRequest(f"{field}: two are at {mount.path:.200}; give each a path of its own", field=field)
        taken.add(mount.path)
        if mount.kind == "bucket":
            _check_bucket(field, mount)
        elif not mount.volume:
            raise InvalidRequest(f"{field}: {mount.path:.200} names no volume; name one", field=field)
        elif mount.secret is not None or any(getattr(mount, name) for name in _OF_BUCKETS):
            raise InvalidRequest(f"{field}: {mount.path:.200} is a volume and a bucket; choose one", field=field)


def overlap(one: str, other: str) -> bool:
    """Whether one of two plain absolute paths is, or is below, the other."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _check_bucket(field: str, mount: MountSpec) -> None:
    for name, pattern, what in (
        ("bucket", _BUCKET, "a bucket's name, of 3 to 63 lower-case letters, digits, dots and dashes"),
        ("endpoint", _ENDPOINT, "an URL such as https://minio.example.com:9000"),
        ("region", _REGION, "a region such as eu-west-1"),
    ):
        value = getattr(mount, name)
        if (value or name == "bucket") and not pattern.fullmatch(value):
            raise InvalidRequest(f"{field}: {name} {value!r:.100} is not {what}", field=field)
    if mount.volume or mount.sub_path:
        raise InvalidRequest(f"{field}: a bucket has no volume and no sub_path; give its prefix", field=field)
    _check_sub_path(field, mount.prefix.removesuffix("/"))
    if mount.secret is not None:
        check_use(field, mount.secret)


def check_mount_path(field: str, path: str) -> None:
    """Raises `InvalidRequest` for a path at which nothing can be mounted."""
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
