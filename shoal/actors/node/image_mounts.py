"""Mounts images into a sandbox's container, and takes them away. The intent is in the container's record first: a
restart of the container mounts what is there again."""

from __future__ import annotations

import asyncio

from shoal.actors.node.containers import Containers
from shoal.actors.node.images import NodeImages
from shoal.model import tasks


async def mount(containers: Containers, images: NodeImages, sandbox_id: str, image: str, path: str) -> None:
    """Mounts an image (a reference or a digest), which is fetched if it is not here. Idempotent; if it raises, nothing
    of it is left. `NotFound` for a sandbox without a container here, `ImageNotFound`; else as the engine's."""
    await images.fetch(image)
    found = await containers.engine.images.get(image, pull=False)
    await asyncio.shield(tasks.shared(_mount(containers, sandbox_id, found.digest, path), "mount image"))


async def unmount(containers: Containers, sandbox_id: str, path: str) -> None:
    """Idempotent; `NotFound`."""
    await asyncio.shield(tasks.shared(_unmount(containers, sandbox_id, path), "unmount image"))


async def _mount(containers: Containers, sandbox_id: str, digest: str, path: str) -> None:
    key = containers.need(sandbox_id).key
    async with containers.unchanged(key):
        before = containers.records[key].images
        await containers.note(key, images={**before, path: digest})
        try:
            await containers.engine.mount_image(key, digest, path)
        except BaseException:
            await containers.note(key, images=before)
            raise


async def _unmount(containers: Containers, sandbox_id: str, path: str) -> None:
    key = containers.need(sandbox_id).key
    async with containers.unchanged(key):
        await containers.engine.unmount_image(key, path)
        images = containers.records[key].images
        await containers.note(key, images={at: image for at, image in images.items() if at != path})
