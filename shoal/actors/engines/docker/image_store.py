"""The image store contract over the daemon's images."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from shoal.actors.engines.docker.images import Images
from shoal.actors.engines.image_store import ImageConfig, ImageInfo, ImageStore

T = TypeVar("T")

UNNAMED: Final = "shoal-unnamed"
"""The repository of images that nobody has named: the daemon removes one without a name at will."""


class InPool(Protocol):
    """Runs a blocking body in one of the engine's thread pools."""

    def __call__(self, pool: str, body: Callable[[], T]) -> Coroutine[Any, Any, T]: ...


class DockerImageStore(ImageStore):
    """`images`: those of the open engine; raises `FailedPrecondition` while it is not open. `commit`: makes an image of
    a container; blocks."""

    def __init__(
        self,
        images: Callable[[], Images],
        in_pool: InPool,
        commit: Callable[[str, ImageConfig | None, str], ImageInfo],
    ) -> None:
        self._images = images
        self._commit = commit
        self._in = in_pool

    async def get(self, reference: str, *, pull: bool = True) -> ImageInfo:
        images = self._images()
        found = await self._in("look", lambda: images.get(reference))
        if found is not None:
            return found
        pull = pull and not reference.startswith("sha256:")  # of a digest alone no registry is known
        return await self._in(
            "pull" if pull else "look", lambda: images.pull(reference) if pull else images.need(reference)
        )

    async def pull_as(self, reference: str, name: str, username: str, password: str) -> ImageInfo:
        images = self._images()
        return await self._in("pull", lambda: images.pull_as(reference, name, username, password))

    async def list(self) -> builtins.list[ImageInfo]:
        return await self._in("look", self._images().all)

    async def load(self, archive: Path, reference: str, config: ImageConfig) -> ImageInfo:
        images = self._images()
        return await self._in("pull", lambda: images.load(archive, reference, config))

    async def commit(self, key: str, config: ImageConfig | None = None, reference: str | None = None) -> ImageInfo:
        self._images()  # raises where the engine is not open
        name = f"{UNNAMED}:{key}" if reference is None else reference
        made = await self._in("pull", lambda: self._commit(key, config, name))
        return made if reference is not None else replace(made, reference=made.digest)

    async def tag(self, digest: str, reference: str) -> None:
        images = self._images()
        await self._in("look", lambda: images.tag(digest, reference))

    async def push(self, digest: str, reference: str) -> str:
        images = self._images()
        return await self._in("pull", lambda: images.push(digest, reference))

    async def remove(self, reference: str) -> None:
        images = self._images()
        await self._in("look", lambda: images.remove(reference))
