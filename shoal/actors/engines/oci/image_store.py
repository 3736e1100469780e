"""The image store contract over the layer store."""

from __future__ import annotations

import builtins
from pathlib import Path

from shoal.actors.engines.image_store import ImageConfig, ImageInfo, ImageStore
from shoal.actors.engines.oci.layers import LayerStore
from shoal.actors.engines.threads import EngineThreads
from shoal.model.errors import FailedPrecondition, ImageNotFound


class OciImageStore(ImageStore):
    """`threads`: the engine's, in which the layer store's methods block."""

    def __init__(self, layers: LayerStore, threads: EngineThreads) -> None:
        self._layers = layers
        self._run = threads.run

    async def get(self, reference: str, *, pull: bool = True) -> ImageInfo:
        found = await self._run("look", lambda: self._layers.find(reference))
        if found is None:
            raise ImageNotFound(f"image {reference} is not on this node; load it on the node")
        return found

    async def list(self) -> builtins.list[ImageInfo]:
        return await self._run("look", self._layers.images)

    async def load(self, archive: Path, reference: str, config: ImageConfig) -> ImageInfo:
        return await self._run("pull", lambda: self._layers.add_root_filesystem(archive, reference, config))

    async def commit(self, key: str, config: ImageConfig | None = None, reference: str | None = None) -> ImageInfo:
        raise FailedPrecondition("this engine takes no images of containers yet", state="no_commit")

    async def tag(self, digest: str, reference: str) -> None:
        await self._run("look", lambda: self._layers.tag(digest, reference))

    async def remove(self, reference: str) -> None:
        await self._run("look", lambda: self._layers.remove(reference))
