"""The image store contract over the layer store."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from shoal.actors.engines.image_store import ImageConfig, ImageInfo, ImageStore
from shoal.actors.engines.oci.containers import Containers
from shoal.actors.engines.oci.image_mounts import ImageMounts
from shoal.actors.engines.oci.layers import Changed, LayerStore
from shoal.actors.engines.oci.layers.sources import Credentials
from shoal.actors.engines.oci.memory import without_memory
from shoal.actors.engines.threads import EngineThreads
from shoal.model import tasks
from shoal.model.errors import ImageNotFound, Unavailable

_TIDY_AFTER_S: Final = 0.1
"""Seconds in which the controller puts a snapshot on record. Tidying has the machine write its disk, for which that
would wait: 6 ms for 10 MiB."""

_READY_S: Final = 60.0
"""Seconds for which a program waits for the next snapshot, after one: it takes some 6 MB."""


class OciImageStore(ImageStore):
    """`threads`: the engine's, in which the layer store's methods block; `containers`: those of the open engine, raises
    `FailedPrecondition` while it is not open."""

    def __init__(self, layers: LayerStore, threads: EngineThreads, containers: Callable[[], Containers]) -> None:
        self._layers = layers
        self._run = threads.run
        self._containers = containers
        self._pulls: dict[str, asyncio.Task[ImageInfo]] = {}
        self._tidying: asyncio.Task[None] | None = None
        self._forgetting: asyncio.TimerHandle | None = None

    async def get(self, reference: str, *, pull: bool = True) -> ImageInfo:
        found = await self._run("look", lambda: self._layers.find(reference))
        if found is not None:
            return found
        if not pull or reference.startswith("sha256:"):
            raise ImageNotFound(f"image {reference} is not on this node; pull it first, or load it on the node")
        try:
            return await self._pull(reference)
        except (ImageNotFound, Unavailable) as error:
            message = f"image {reference} is neither an image of the cluster (`shoal image ls`) nor on this node, and "
            raise type(error)(message + error.message) from error

    async def pull_as(self, reference: str, name: str, username: str, password: str) -> ImageInfo:
        credentials = Credentials(username, password)
        found = await self._run("pull", lambda: self._layers.pull(reference, credentials, name=name))
        self._tidy()
        return found

    async def list(self) -> builtins.list[ImageInfo]:
        return await self._run("look", self._layers.images)

    async def load(self, archive: Path, reference: str, config: ImageConfig) -> ImageInfo:
        image = await self._run("pull", lambda: self._layers.add_root_filesystem(archive, reference, config))
        self._tidy()
        return image

    async def commit(self, key: str, config: ImageConfig | None = None, reference: str | None = None) -> ImageInfo:
        changed = self._changed(key, config)
        image = await self._run("pull", lambda: self._layers.take_upper(changed, reference))
        self._tidy_later()
        return image

    async def commit_directory(self, key: str, path: str, reference: str | None = None) -> ImageInfo:
        tree = ImageMounts(self._containers()).directory(key, path)
        image = await self._run("pull", lambda: self._layers.take_upper(tree, reference))
        self._tidy_later()
        return image

    @contextmanager
    def _changed(self, key: str, config: ImageConfig | None) -> Iterator[Changed]:
        with self._containers().written(key) as written:
            below = self._layers.find(written.digest)
            defaults = without_memory(below.config) if config is None and below is not None else config
            yield Changed(written.digest, written.upper, written.mounted, defaults)

    async def tag(self, digest: str, reference: str) -> None:
        await self._run("look", lambda: self._layers.tag(digest, reference))

    async def push(self, digest: str, reference: str) -> str:
        return await self._run("pull", lambda: self._layers.push(digest, reference))

    async def remove(self, reference: str) -> None:
        await self._run("look", lambda: self._layers.remove(reference))
        await self._run("walk", self._containers().sweep_memories)

    async def _pull(self, reference: str) -> ImageInfo:
        """Fetches an image once, however many ask. It goes on if all of them are cancelled."""
        pulling = self._pulls.get(reference)
        if pulling is None:
            pulling = tasks.shared(self._run("pull", lambda: self._layers.pull(reference)), "image pull")
            self._pulls[reference] = pulling
            pulling.add_done_callback(lambda _: self._pulls.pop(reference))
            pulling.add_done_callback(lambda _: self._tidy())
        return await asyncio.shield(pulling)

    def _tidy(self) -> None:
        """While nobody waits for it."""
        tasks.shared(self._run("walk", self._layers.tidy), "image tidying")

    def _tidy_later(self) -> None:
        """The same, once what was made is on record: once, however many images are made meanwhile."""
        if self._tidying is None:
            self._tidying = tasks.shared(self._tidied(), "image tidying")

    async def _tidied(self) -> None:
        await asyncio.sleep(_TIDY_AFTER_S)
        self._tidying = None  # what is made from now on may be too late for this one
        await self._run("walk", self._layers.tidy)
        await self._run("look", self._layers.get_ready)
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._forgetting = asyncio.get_running_loop().call_later(_READY_S, self._forget_ready)

    def _forget_ready(self) -> None:
        tasks.shared(self._run("look", self._layers.forget_ready), "image tidying")
