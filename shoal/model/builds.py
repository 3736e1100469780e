"""Builds of images, as the cluster tells of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from shoal.model.errors import InvalidRequest
from shoal.model.validate import check_number

MOST_TIMEOUT_S = 24 * 3600.0
PIECE = 4 << 20
"""Bytes of files that are sent in one call, at most."""

LONGEST_LOOK_S = 20.0
"""The longest that one look at a build's log waits for more of it."""


class BuildState(StrEnum):
    FILES = "files"  # it needs files that the cluster does not have: send those that are `missing`, and ask again
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build. `timeout`: seconds for all of it; the rest is what the sandboxes get in which steps run, None for
    the cluster's default: cores, MiB, and `default` or `none`. `force`: nothing that was built before is used."""

    timeout: float = 1800.0
    cpu: float | None = None
    memory: int | None = None
    disk: int | None = None
    network: str = "default"
    force: bool = False

    def check(self) -> None:
        """Raises `InvalidRequest` for what cannot be."""
        check_number("timeout", self.timeout, 0, MOST_TIMEOUT_S, "seconds")
        if self.cpu is not None:
            check_number("cpu", self.cpu, 0, 1024, "cores")
        for name in ("memory", "disk"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0, 1 << 24, "MiB", whole=True)
        if self.network not in ("default", "none"):
            raise InvalidRequest(f"network: {self.network!r:.80} is neither 'default' nor 'none'", field="network")


@dataclass(frozen=True, slots=True)
class BaseImage:
    """What a build begins with. `ours`: it is an image of the cluster; `env` … `labels`: its defaults for
    processes."""

    reference: str
    digest: str
    ours: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    workdir: str = "/"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PushedImage:
    """An image that was sent to a registry, and the digest by which that knows it."""

    reference: str
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """One build. `id`: empty while files are missing, and where all was there before; `step`: how many are done of
    `steps`; `cached`: how many of them were there before; `missing`: digests of files to send; `image`: the id of what
    it made; `error`: as `ShoalError.to_dict` gives it; times in unix seconds."""

    id: str
    environment: str
    state: BuildState
    steps: int
    step: int = 0
    cached: int = 0
    missing: tuple[str, ...] = ()
    image: str | None = None
    error: Mapping[str, Any] | None = None
    started_at: float = 0.0
    ended_at: float | None = None

    @property
    def ended(self) -> bool:
        return self.state in (BuildState.DONE, BuildState.FAILED)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "state": self.state.value, "missing": list(self.missing)}


@dataclass(frozen=True, slots=True)
class BuildLog:
    """A part of a build's log. `offset`: where in the log, in bytes, the next part begins; `build`: how it stands."""

    text: str
    offset: int
    build: BuildInfo

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"text": self.text, "offset": self.offset, "build": self.build.to_dict()}
