"""Images that are taken of this node's sandboxes, under names of the engine that tell whose they are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tarfile
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shoal.actors.engines.contract import Engine
from shoal.actors.engines.image_store import ImageConfig, ImageInfo
from shoal.actors.messages import NodeImage
from shoal.actors.names import DIGEST, copy_name, image_reference
from shoal.actors.node.containers import Containers
from shoal.actors.node.image_transfer import ImageTransfer
from shoal.model import tasks
from shoal.model.errors import FailedPrecondition, ImageNotFound, NotFound, ShoalError
from shoal.model.ids import IMAGE
from shoal.model.recipe import SCRATCH

log = logging.getLogger("shoal.node")


@dataclass(slots=True)
class NodeImages:
    """`cluster`: whose images these are; `transfer`: None where the engine's images stay on this node."""

    engine: Engine
    containers: Containers
    cluster: str
    transfer: ImageTransfer | None = None
    _making: dict[str, asyncio.Task[ImageInfo]] = field(default_factory=dict)

    async def fetch(self, image: str) -> None:
        """Makes sure that the engine has an image, by reference or digest; one of the cluster's is fetched from the
        object storage. `ImageNotFound`."""
        if IMAGE.fullmatch(image):  # a digest stands for one that there is, and a registry has none of that name
            raise ImageNotFound(f"image {image} is deleted; choose another", field="image")
        if image == SCRATCH:
            await self._provide_scratch()
            return
        if self.transfer is None or not image.startswith(DIGEST):
            await self.engine.images.get(image)
            return
        try:
            await self.engine.images.get(image, pull=False)
        except ImageNotFound:
            await self.transfer.fetch(image, image_reference(self.cluster, copy_name(image)))

    async def put(self, digest: str, again: bool) -> None:
        """Stores an image in the object storage; `FailedPrecondition` where it cannot travel."""
        if self.transfer is None:
            raise FailedPrecondition(f"images of the engine {self.engine.name} stay on their node", state="no_travel")
        await self.transfer.put(digest, again)

    async def find(self, image: str, pull: bool) -> NodeImage | None:
        """An image that the engine has, or (`pull`) can have; None if it is not on this node, and not to be pulled."""
        if image == SCRATCH:
            found = await self._provide_scratch()
        else:
            try:
                found = await self.engine.images.get(image, pull=pull)
            except ImageNotFound:
                if pull:
                    raise
                return None
        return NodeImage(found.digest, found.size, _plain(found.config))

    async def pull(self, reference: str, image_id: str, username: str, password: str) -> NodeImage:
        """Fetches an image of a registry with credentials. It has no name but that of an image of the cluster."""
        name = image_reference(self.cluster, image_id)
        self._making[image_id] = task = tasks.shared(
            self.engine.images.pull_as(reference, name, username, password), "pull image"
        )
        task.add_done_callback(lambda _: self._making.pop(image_id, None))
        found = await asyncio.shield(task)
        return NodeImage(found.digest, found.size, _plain(found.config))

    async def _provide_scratch(self) -> ImageInfo:
        """The image without any file, made at its first use."""
        with contextlib.suppress(ImageNotFound):
            return await self.engine.images.get(SCRATCH, pull=False)
        archive = await asyncio.to_thread(_empty_archive)
        try:
            return await self.engine.images.load(archive, SCRATCH, ImageConfig())
        finally:
            await asyncio.to_thread(archive.unlink)

    async def snapshot(self, sandbox_id: str, image_id: str, config: Mapping[str, Any] | None) -> NodeImage:
        """An image of a sandbox's files; the one that there is, if it was made before. `NotFound` if the sandbox has no
        container here."""
        config_of_image = _config(config)
        return await self._make(
            sandbox_id, image_id, lambda key, reference: self.engine.images.commit(key, config_of_image, reference)
        )

    async def snapshot_directory(self, sandbox_id: str, image_id: str, path: str) -> NodeImage:
        """The same of one directory."""
        return await self._make(
            sandbox_id, image_id, lambda key, reference: self.engine.images.commit_directory(key, path, reference)
        )

    async def checkpoint(self, sandbox_id: str, image_id: str) -> NodeImage:
        """The same with its memory. `FailedPrecondition` if the engine or its runtime gives none."""
        return await self._make(sandbox_id, image_id, self.engine.checkpoint)

    async def _make(
        self, sandbox_id: str, image_id: str, take: Callable[[str, str], Awaitable[ImageInfo]]
    ) -> NodeImage:
        task = self._making.get(image_id)
        if task is None:
            task = self._making[image_id] = tasks.shared(self._taken(sandbox_id, image_id, take), "snapshot")
            task.add_done_callback(lambda _: self._making.pop(image_id, None))
        made = await asyncio.shield(task)
        return NodeImage(made.digest, made.size, _plain(made.config))

    async def remove(self, image_id: str) -> None:
        """Removes an image of the cluster, once what makes it is over. Idempotent; `FailedPrecondition` if a container
        uses it."""
        making = self._making.get(image_id)
        if making is not None:
            with contextlib.suppress(ShoalError):
                await asyncio.shield(making)
        await self.engine.images.remove(image_reference(self.cluster, image_id))

    async def sweep(self, unknown: Callable[[Sequence[str]], Awaitable[Sequence[str]]]) -> None:
        """Removes what a crash left. `unknown`: those of some ids that no image of the cluster has."""
        prefix = image_reference(self.cluster)
        names = [image.reference for image in await self.engine.images.list() if image.reference.startswith(prefix)]
        found = {name: name.removeprefix(prefix) for name in names}
        stray = {name: tag for name, tag in found.items() if not any(tag.startswith(each) for each in self._making)}
        if self.transfer is not None:
            await self.transfer.tidy()
        if not stray:
            return
        gone = set(await unknown(sorted(set(stray.values()))))
        for name, tag in stray.items():
            if tag in gone:
                log.warning("image %s is not one of the cluster's: removing it", name)
                with contextlib.suppress(ShoalError):  # a container uses it: the next sweep tries again
                    await self.engine.images.remove(name)

    async def _taken(
        self, sandbox_id: str, image_id: str, take: Callable[[str, str], Awaitable[ImageInfo]]
    ) -> ImageInfo:
        reference = image_reference(self.cluster, image_id)
        with contextlib.suppress(ImageNotFound):
            return await self.engine.images.get(reference, pull=False)
        record = self.containers.of_sandbox(sandbox_id)
        if record is None:
            raise NotFound(f"sandbox {sandbox_id} has no container on this node")
        async with self.containers.unchanged(record.key):
            return await take(record.key, reference)


def _empty_archive() -> Path:
    """A tar archive of nothing."""
    descriptor, name = tempfile.mkstemp(prefix="shoal-scratch-", suffix=".tar")
    os.close(descriptor)
    tarfile.open(name, "w").close()
    return Path(name)


def _config(plain: Mapping[str, Any] | None) -> ImageConfig | None:
    if plain is None:
        return None
    lists = {name: tuple(plain.get(name, ())) for name in ("entrypoint", "command")}
    return ImageConfig(**{**plain, **lists})


def _plain(config: ImageConfig) -> dict[str, Any]:
    return {**asdict(config), "entrypoint": list(config.entrypoint), "command": list(config.command)}
