"""Removes from the object storage what no image of the cluster needs any more.

Mark and sweep: what the manifests of living images need stays, and what is younger than a grace time. Nothing is being
stored meanwhile (`ImageStorage.pause`); what a node goes on storing for a controller that was killed is young, or is on
its way again for this one. Whoever fetches a layer that was swept away all the same has the image stored anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from shoal.actors.controller.image_storage import ImageStorage
from shoal.actors.controller.images import Images
from shoal.actors.controller.object_storage import ObjectStorage
from shoal.actors.objects import ObjectInfo, ObjectStore
from shoal.actors.stored_images import BLOBS, IMAGES, LAYERS, MOST_BYTES, StoredImage, digest_of, read_image
from shoal.model.errors import FailedPrecondition, NotFound

log = logging.getLogger("shoal.images")

SWEEP_S = 60.0
GRACE_S = 3600.0


@dataclass(slots=True)
class StoredImageSweep:
    """`clock`: unix seconds, as the storage's."""

    images: Images
    storage: ImageStorage
    objects: ObjectStorage
    clock: Callable[[], float] = time.time
    grace_s: float = GRACE_S
    _stored: set[str] | None = None
    _due: bool = False
    _manifests: dict[str, StoredImage] = field(default_factory=dict)

    async def turn(self) -> None:
        """Sweeps if a stored image has gone since the last time, or something that nobody needs was too young then."""
        records = self.images.all()
        known = {record.digest for record in records}
        gone = self._stored is None or not self._stored <= known
        self._due = self._due or (gone and (self._stored is not None or any(record.stored for record in records)))
        first, self._stored = self._stored is None, {record.digest for record in records if record.stored}
        if first or not self._due:
            return  # first: nodes may still be storing for an earlier controller
        await self.storage.pause()
        try:
            access = await self.objects.access()
            live = {record.digest for record in self.images.all()}
            self._due = await asyncio.to_thread(self._sweep, access.connect(), live)
        finally:
            self.storage.resume()

    def _sweep(self, store: ObjectStore, live: set[str]) -> bool:
        """Whether something is left for a later turn."""
        try:
            before = self.clock() - self.grace_s
            found = {folder: list(store.list(folder)) for folder in (IMAGES, LAYERS, BLOBS)}
            manifests = {digest_of(info.key): info for info in found[IMAGES]}
            needed: set[str] = set()
            for digest in live & manifests.keys():
                needed |= self._needs(store, digest, manifests[digest])
            doomed = [info for folder in (IMAGES, LAYERS, BLOBS) for info in found[folder] if info.key not in needed]
            old = [info for info in doomed if info.modified < before]
            # Once more: it may have been written since the list was made.
            still = [info.key for info in old if (now := store.head(info.key)) is not None and now.modified < before]
            if still:
                log.info("removing %d objects of images that are gone", len(still))
                store.delete(still)
            return len(still) < len(doomed)
        finally:
            store.close()

    def _needs(self, store: ObjectStore, digest: str, info: ObjectInfo) -> set[str]:
        """What an image needs. One that is not readable keeps its manifest alone: a node that wants it will say so."""
        image = self._manifests.get(digest)
        if image is None:
            try:
                image = read_image(digest, b"".join(store.read(info.key, length=MOST_BYTES)))
            except (FailedPrecondition, NotFound):
                return {info.key}
            self._manifests[digest] = image
        return image.needs()
