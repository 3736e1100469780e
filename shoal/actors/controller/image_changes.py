"""Changes of images: each is in memory once it is on record, one at a time. Only that one is about to go counts at
once, so that nobody begins to use it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.actors.controller.image_use import ImageUse
from shoal.actors.controller.images import Images
from shoal.actors.controller.record_writer import RecordWriter
from shoal.actors.controller.store import Change
from shoal.model.access import AuditEntry
from shoal.model.errors import FailedPrecondition, ImageNotFound, ShoalError
from shoal.model.images import ImageRecord, ImageState


@dataclass(slots=True)
class ImageChanges:
    """`going`: is told of the digest of each image that is about to go."""

    images: Images
    use: ImageUse
    writer: RecordWriter
    going: Callable[[str], None] = lambda digest: None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def add(self, record: ImageRecord) -> None:
        """Puts a new one on record."""
        async with self._turn:
            await self._write([record])

    async def change(self, image_id: str, audit: Sequence[AuditEntry] = (), **changed: Any) -> ImageRecord:
        """Changes attributes of one. A name or cache key that another of its environment has moves to it.
        `ImageNotFound` if it is about to go."""
        async with self._turn:
            before = self.images.get(image_id)
            if before is None or before.state is ImageState.GOING:
                raise ImageNotFound(f"image: {image_id} is deleted", field="image")
            after = replace(before, **changed)
            await self._write([after, *self._losers(after)], audit)
            return after

    async def let_go(
        self, image_ids: Sequence[str], now: float, audit: Sequence[AuditEntry] = (), *, when_unused: bool = True
    ) -> list[ImageRecord]:
        """From now on nobody can use them; they go from their machines once nothing needs them. Returns those that were
        not about to go before. Not `when_unused`: `FailedPrecondition`, and all stay, if something needs one now."""
        async with self._turn:
            known = (self.images.get(image_id) for image_id in image_ids)
            before = [record for record in known if record is not None and record.state is not ImageState.GOING]
            if not when_unused:
                counts = self.use.counts()
                for record in before:
                    _check_unused(record, counts[record.id])
            after = [
                replace(record, state=ImageState.GOING, name=None, cache_key=None, expires_at=now) for record in before
            ]
            for record in after:
                self.images.put(record)
            try:
                await self._write(after, audit)
            except ShoalError:
                for record in before:
                    self.images.put(record)
                raise
        for record in after:
            self.going(record.digest)
        return before

    def doom(self, image_id: str) -> None:
        """Lets one go in memory alone: the store, which is away, has it as one that was not finished."""
        record = self.images.get(image_id)
        if record is not None:
            self.images.put(replace(record, state=ImageState.GOING))
            self.going(record.digest)

    async def remove(self, image_id: str) -> None:
        """It is gone from all machines."""
        async with self._turn:
            await self.writer.write(Change(removed_images=(image_id,)))
            self.images.remove(image_id)

    async def write_use(self) -> None:
        """Puts on record when images were used last."""
        used, self.use.used = self.use.used, set()
        if used:
            async with self._turn:
                await self._write([record for each in used if (record := self.images.get(each)) is not None])

    async def _write(self, records: Sequence[ImageRecord], audit: Sequence[AuditEntry] = ()) -> None:
        if records or audit:
            await self.writer.write(Change(images=records, audit=audit))
            for record in records:
                self.images.put(record)

    def _losers(self, record: ImageRecord) -> list[ImageRecord]:
        """Those whose name or cache key moves to this one."""
        lost: dict[str, ImageRecord] = {}
        if record.name is not None and (other := self.images.find(record.name, record.environment)) is not None:
            lost[other.id] = replace(other, name=None)
        if record.cache_key and (other := self.images.cached(record.environment, record.cache_key)) is not None:
            lost[other.id] = replace(lost.get(other.id, other), cache_key=None)
        lost.pop(record.id, None)
        return list(lost.values())


def _check_unused(record: ImageRecord, in_use: int) -> None:
    if in_use:
        raise FailedPrecondition(
            f"image {record.name or record.id} is needed by {in_use} sandboxes or pools; end them first, or delete it "
            "with when_unused, which lets it go once they do not need it any more",
            state="in_use",
            in_use=in_use,
            field="image",
        )
