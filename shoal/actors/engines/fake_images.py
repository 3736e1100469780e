"""The image store of the engine in memory. It keeps names, not files."""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoal.actors.engines.image_store import ImageConfig, ImageInfo, ImageStore
from shoal.actors.engines.references import check_reference
from shoal.model.errors import FailedPrecondition, ImageNotFound, NotFound


class FakeImageStore(ImageStore):
    """`known`: the images on the node, by reference and by digest; `registry`: those that can be pulled; `call`: notes
    a call of the engine; `used`: the image of each container, by its key, and those mounted into it, by key and path.
    """

    def __init__(
        self,
        known: Mapping[str, ImageInfo],
        registry: Mapping[str, ImageInfo],
        call: Callable[..., AbstractAsyncContextManager[Any]],
        used: Callable[[], Mapping[str, str]],
    ) -> None:
        self.known = dict(known)
        self.registry = dict(registry)
        self._call = call
        self._used = used

    async def get(self, reference: str, *, pull: bool = True) -> ImageInfo:
        async with self._call("image", reference, pull):
            check_reference(reference)
            if reference not in self.known:
                if not pull or reference not in self.registry:
                    raise ImageNotFound(f"image {reference} is not on this node")
                self.known[reference] = self.registry[reference]
            return self.known[reference]

    async def pull_as(self, reference: str, name: str, username: str, password: str) -> ImageInfo:
        async with self._call("pull_image", reference, name):
            check_reference(reference)
            if reference not in self.registry:
                raise ImageNotFound(f"image {reference} is in no registry")
            return self._add(replace(self.registry[reference], reference=name))

    async def list(self) -> builtins.list[ImageInfo]:
        async with self._call("list_images"):
            return builtins.list(self.known.values())

    async def load(self, archive: Path, reference: str, config: ImageConfig) -> ImageInfo:
        async with self._call("load_image", archive, reference, config):
            check_reference(reference)
            return self._add(replace(fake_image(reference), config=config))

    async def commit(self, key: str, config: ImageConfig | None = None, reference: str | None = None) -> ImageInfo:
        async with self._call("commit", key, config, reference):
            image = self._used().get(key)
            if image is None:
                raise NotFound(f"there is no container {key} on this node")
            own = self.known[image].config if image in self.known else ImageConfig()
            made = replace(fake_image(f"{image} {key} {len(self.known)}"), config=own if config is None else config)
            return self._add(replace(made, reference=reference or made.digest))

    async def commit_directory(self, key: str, path: str, reference: str | None = None) -> ImageInfo:
        async with self._call("commit_directory", key, path, reference):
            if key not in self._used():
                raise NotFound(f"there is no container {key} on this node")
            made = fake_image(f"{path} {key} {len(self.known)}")
            return self._add(replace(made, reference=reference or made.digest))

    async def tag(self, digest: str, reference: str) -> None:
        async with self._call("tag_image", digest, reference):
            check_reference(reference)
            if digest not in self.known:
                raise ImageNotFound(f"image {digest} is not on this node")
            self.known[reference] = replace(self.known[digest], reference=reference)

    async def push(self, digest: str, reference: str) -> str:
        async with self._call("push_image", digest, reference):
            check_reference(reference, "reference")
            if digest not in self.known:
                raise ImageNotFound(f"image {digest} is not on this node")
            self.registry[reference] = self.known[digest]
            return digest

    async def remove(self, reference: str) -> None:
        async with self._call("remove_image", reference):
            check_reference(reference)
            image = self.known.get(reference)
            if image is None:
                return
            names = [name for name, each in self.known.items() if each.digest == image.digest]
            if reference != image.digest and len([name for name in names if name != image.digest]) > 1:
                del self.known[reference]
                return
            if not set(names).isdisjoint(self._used().values()):
                raise FailedPrecondition(f"a container uses image {reference}", state="in_use")
            for name in names:
                del self.known[name]

    def _add(self, image: ImageInfo) -> ImageInfo:
        self.known[image.digest] = self.known[image.reference] = image
        return image


def fake_image(reference: str) -> ImageInfo:
    """An image as a node knows it."""
    return ImageInfo(
        reference=reference, digest=f"sha256:{hashlib.sha256(reference.encode()).hexdigest()}", size=1 << 20
    )
