"""Layers for the conformance suite without a layer store: directories that were unpacked before."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from pathlib import Path

from shoal.actors.engines.image_store import ImageConfig, ImageInfo, ImageStore
from shoal.actors.engines.references import check_reference
from shoal.actors.engines.threads import EngineThreads
from shoal.model.errors import ImageNotFound


class PlainLayers:
    """`trees`: an image's only layer, by reference."""

    def __init__(self, trees: Mapping[str, Path]) -> None:
        self.images = {name: ImageInfo(name, f"sha256:{number:064x}", size=1) for number, name in enumerate(trees)}
        self.trees = {self.images[name].digest: tree for name, tree in trees.items()}
        self.held_by: dict[str, str] = {}

    def open(self) -> None:
        """There is nothing to make."""

    def find(self, reference: str) -> ImageInfo | None:
        check_reference(reference)
        return self.images.get(reference)

    def lower_dirs(self, digest: str) -> tuple[Path, ...]:
        return (self.trees[digest],)

    def hold(self, digest: str, key: str, *, durable: bool = False) -> None:
        self.held_by[key] = digest

    def let_go(self, key: str) -> None:
        self.held_by.pop(key, None)


class PlainImages(ImageStore):
    def __init__(self, layers: PlainLayers, _threads: EngineThreads, _containers: object) -> None:
        self._layers = layers

    async def get(self, reference: str, *, pull: bool = True) -> ImageInfo:
        found = self._layers.find(reference)
        if found is None:
            raise ImageNotFound(f"image {reference} is not on this node")
        return found

    async def list(self) -> builtins.list[ImageInfo]:
        return [*self._layers.images.values()]

    async def load(self, archive: Path, reference: str, config: ImageConfig) -> ImageInfo:
        raise NotImplementedError

    async def commit(self, key: str, config: ImageConfig | None = None, reference: str | None = None) -> ImageInfo:
        raise NotImplementedError

    async def tag(self, digest: str, reference: str) -> None:
        raise NotImplementedError

    async def remove(self, reference: str) -> None:
        raise NotImplementedError
