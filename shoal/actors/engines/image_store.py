"""The image store contract: the root filesystems of a node, how they come, are shared, and go.

Terms
    image       a root filesystem with defaults for its processes (`ImageConfig`). Its *digest* (`sha256:…`) names its
                content for good; a *reference* (`python:3.12`) is a name that may move to another image.
    layer       a part of an image: what one step changed on top of the layers below.

Rules for every store
    - All methods are async and never block the loop.
    - What adds an image is all or nothing: after an error, a cancelled call or a crash, nothing of it can be seen, and
      what was half written is removed at the latest by the next `open` of the engine.
    - An image that a container uses stays until the last one is removed, whatever is asked meanwhile.
    - Archives are hostile: a name that leads outside, a wrong digest, a size beyond the bound is `InvalidRequest`
      (field `image`).
    - Errors are of `shoal.model.errors`: `ImageNotFound`, `InvalidRequest`, `Unavailable` (the engine or the registry
      does not answer), `FailedPrecondition`, `Internal`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shoal.model.errors import FailedPrecondition


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The defaults for an image's processes. `user`: empty for root; `entrypoint`, `command`: empty if none."""

    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    workdir: str = "/"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image on this node. `size`: bytes of its content; `created_at`: seconds since the epoch, 0 if unknown."""

    reference: str
    digest: str
    config: ImageConfig = field(default_factory=ImageConfig)
    size: int = 0
    created_at: float = 0.0


class ImageStore(ABC):
    """The images of this node. See the module for the rules that hold for every method."""

    @abstractmethod
    async def get(self, reference: str, *, pull: bool = True) -> ImageInfo:
        """The image that a reference or a digest names, pulled if it is not on the node and `pull` is set.
        `ImageNotFound` with the reason if it cannot be had, `InvalidRequest` (field `image`) for an invalid reference,
        `Unavailable` if the registry does not answer."""

    @abstractmethod
    async def pull_as(self, reference: str, name: str, username: str, password: str) -> ImageInfo:
        """Fetches the image of a reference from its registry with these credentials, also if it is here, and names it
        `name` alone: whoever asks for the reference does not get it for that. Errors as of `get`."""

    @abstractmethod
    async def list(self) -> list[ImageInfo]:
        """All images, those without a reference too (their digest stands in its place), in any order."""

    @abstractmethod
    async def load(self, archive: Path, reference: str, config: ImageConfig) -> ImageInfo:
        """Makes an image of one layer from a tar of a root filesystem, compressed or not, and names it."""

    @abstractmethod
    async def commit(self, key: str, config: ImageConfig | None = None, reference: str | None = None) -> ImageInfo:
        """Makes an image of what a container has changed, on top of the image that it was started from. The container
        is frozen for the moment in which its files are taken; it may also have exited, and its disk be put away.
        `config`: None for that of the image below; nothing that the container was given for itself is in it. What was
        mounted into it is not part of the image. `NotFound`: there is none; `QuotaExceeded`: the machine's disk is
        full."""

    async def commit_directory(self, key: str, path: str, reference: str | None = None) -> ImageInfo:
        """Makes an image whose root is a directory of a container that runs, as that sees it, but for what is mounted
        below it. The container is frozen for the moment in which the files are taken. Links in `path` are followed.
        `NotFound`; `PathNotFound` and `NotADirectory` (field `path`), `InvalidRequest` for one that is not on the
        container's own disk; `QuotaExceeded`; `FailedPrecondition` without `IMAGE_MOUNTS`, or by its runtime."""
        raise FailedPrecondition(
            "this node's engine takes images of whole filesystems only: set engine = oci on it, or take one",
            state="no_mounts",
        )

    @abstractmethod
    async def tag(self, digest: str, reference: str) -> None:
        """Gives an image one more name, which may have been another's. `ImageNotFound`."""

    @abstractmethod
    async def push(self, digest: str, reference: str) -> str:
        """Sends an image to the registry of a reference, with the credentials that the engine has for it; returns the
        digest of its manifest there. `ImageNotFound`, `InvalidRequest`, `FailedPrecondition`, `Unavailable`."""

    @abstractmethod
    async def remove(self, reference: str) -> None:
        """Takes a name away, and with an image's last name the image; given a digest, the image with all its names.
        Layers that no other image has go, too. Idempotent. `FailedPrecondition` if a container uses the image (whose
        last name stays then)."""
