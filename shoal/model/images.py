"""Images of the cluster: root filesystems that were taken of sandboxes, or built, and that sandboxes start from.

A spec's `image` may name one by its id (`im-…`) or by its name (`name:tag`) in the spec's environment; every other text
is a reference that the engine knows or pulls.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from shoal.model.errors import InvalidRequest
from shoal.model.info import PageCursor
from shoal.model.validate import check_number

_NAME = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?")
_LONGEST_NAME = 255
LATEST = "latest"
"""The tag of a name that is written without one."""

MAX_TTL = 10 * 366 * 86400.0
"""Seconds of the longest `ttl`."""


class ImageKind(StrEnum):
    """Where an image comes from."""

    SNAPSHOT = "snapshot"  # the filesystem of a sandbox
    BUILD = "build"  # a step of a recipe
    LOADED = "loaded"  # an archive
    CHECKPOINT = "checkpoint"  # the filesystem and the memory of a sandbox, on its own machine only


class ImageState(StrEnum):
    """How far an image is."""

    MAKING = "making"  # its node is about to make it; after a crash it goes
    READY = "ready"
    GOING = "going"  # nobody may use it any more; it goes once nothing does


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image. Times in unix seconds; `size` in bytes, with the layers below.

    `digest`: empty until it is made; `name`: `name:tag`; `parent`: what the sandbox was started from, as its creator
    wrote it; `config`: the defaults for its processes (`env`, `user`, `workdir`, `entrypoint`, `command`, `labels`);
    `cache_key`: of the step of a recipe; `machines`: the ids of the machines that have it; `used_at`: when a sandbox
    was last created from it; `sandbox_id`: whose files it has; `in_use`: living sandboxes and pools that need it;
    `key`: the idempotency key of the call that asked for it; `stored`: it is in the object storage, so that every
    machine can have it.
    """

    id: str
    environment: str
    kind: ImageKind
    created_at: float
    state: ImageState = ImageState.READY
    digest: str = ""
    name: str | None = None
    parent: str | None = None
    size: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    expires_at: float | None = None
    cache_key: str | None = None
    machines: tuple[str, ...] = ()
    used_at: float | None = None
    sandbox_id: str | None = None
    in_use: int = 0
    stored: bool = False
    key: str | None = None

    def to_row(self) -> dict[str, Any]:
        """JSON-ready, all of it."""
        return {**asdict(self), "machines": list(self.machines)}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as callers see it."""
        told = self.to_row()
        del told["key"]
        return told

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ImageRecord:
        """The inverse of both, without what only a newer cluster knows; `KeyError`, `ValueError` or `TypeError`
        where `data` is no image."""
        known = {name: value for name, value in data.items() if name in _FIELDS}
        known |= {"kind": ImageKind(data["kind"]), "machines": tuple(data["machines"])}
        return cls(**{**known, "state": ImageState(data.get("state", ImageState.READY))})


_FIELDS = frozenset(ImageRecord.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class ImageListing:
    """Which images to list, newest first: of one environment, of one `kind`, of one `name` (with its tag, or all tags
    of it). `before`: only those that come after this one, named by (created_at, id)."""

    environment: str = "main"
    kind: ImageKind | None = None
    name: str | None = None
    limit: int = 1000
    before: PageCursor | None = None


@dataclass(frozen=True, slots=True)
class ImagePage:
    """A page of a listing. `reached`: there may be more after this one; None: here are all."""

    images: list[ImageRecord]
    reached: PageCursor | None = None


def image_name(value: object, field: str = "name") -> str:
    """A name with its tag, `latest` where it has none; `InvalidRequest` for what is no name of an image."""
    if not isinstance(value, str) or len(value) > _LONGEST_NAME or not _NAME.fullmatch(value):
        raise InvalidRequest(
            f"{field}: {value!r:.80} is no name of an image; write it as name:tag, the name in lower case and without "
            "slashes",
            field=field,
        )
    return value if ":" in value else f"{value}:{LATEST}"


def may_be_name(reference: str) -> bool:
    """Whether a spec's `image` may be the name of an image of the cluster."""
    return len(reference) <= _LONGEST_NAME and _NAME.fullmatch(reference) is not None


def check_ttl(value: object) -> None:
    """Raises `InvalidRequest` for what is no `ttl`: seconds, or None."""
    if value is not None:
        check_number("ttl", value, 0, MAX_TTL, "seconds")
