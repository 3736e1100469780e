"""Puts images into the object storage, so that every node can start sandboxes from them.

The machine that made an image stores it in the background; once it has, that is on record (`stored`), and any node may
run it. A controller that is killed finds on record what is not stored yet, and asks again: a node goes on where it was.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shoal.actors.controller.image_changes import ImageChanges
from shoal.actors.controller.images import Images
from shoal.actors.controller.nodes import Nodes
from shoal.model import tasks
from shoal.model.errors import FailedPrecondition, ImageNotFound, ShoalError, Unavailable
from shoal.model.images import ImageKind, ImageRecord, ImageState

log = logging.getLogger("shoal.images")

LOOK_S = 1.0
PUT_S = 3600.0
_MOST_AT_ONCE = 4
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0


@dataclass(slots=True)
class ImageStorage:
    """`bucket`: the storage is one of a service, not a server of the cluster's own; `call`: how actors are called;
    `clock`: monotonic."""

    images: Images
    changes: ImageChanges
    nodes: Nodes
    bucket: bool
    call: Callable[..., Awaitable[Any]]
    clock: Callable[[], float] = time.monotonic
    _putting: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _again: set[str] = field(default_factory=set)
    _retries: dict[str, _Retry] = field(default_factory=dict)
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._open.set()

    async def turn(self) -> None:
        """Has nodes store what is to be stored and is not on its way."""
        if not self._open.is_set() or not self._needed():
            return
        now = self.clock()
        waiting = {digest for digest, retry in self._retries.items() if now < retry.at}
        due = to_store(self.images.all(), self._putting.keys() | waiting)
        for digest, records in due.items():
            node_id = self._holder(records)
            if node_id is not None and len(self._putting) < _MOST_AT_ONCE:
                self._begin(digest, node_id)

    def can_store(self, records: Iterable[ImageRecord]) -> bool:
        """Whether an image that is not stored yet will be."""
        found = [record for same in to_store(records, ()).values() for record in same]
        return self._needed() and self._holder(found) is not None

    def gives_away(self, node_id: str) -> bool:
        """Whether what a node has can be stored, so that other nodes have it, too."""
        return self._needed() and self.nodes.fetches(node_id)

    async def ensure(self, digest: str) -> None:
        """Returns once an image is stored: a node waits for it. `ImageNotFound`, `Unavailable`."""
        await self._open.wait()
        records = to_store(self.images.of_digest(digest), ()).get(digest, [])
        if not records:
            if any(record.stored for record in self.images.of_digest(digest)):
                return
            raise ImageNotFound(f"image {digest} is deleted", field="image")
        node_id = self._holder(records)
        if not self._needed() or node_id is None:
            raise Unavailable(f"image {digest} is not stored, and the machine that has it is away")
        await asyncio.shield(self._putting.get(digest) or self._begin(digest, node_id))
        if not any(record.stored for record in self.images.of_digest(digest)):
            raise Unavailable(f"image {digest} could not be stored yet; the controller's log tells why")

    async def damaged(self, digest: str) -> None:
        """A node has found that an image is not stored as it was: it is stored anew, where a machine has it."""
        self._again.add(digest)
        for record in self.images.of_digest(digest):
            if record.stored and record.state is ImageState.READY:
                await self.changes.change(record.id, stored=False)

    async def pause(self) -> None:
        """Returns once nothing is being stored; until `resume`, nothing is."""
        self._open.clear()
        if self._putting:
            await asyncio.wait(list(self._putting.values()))

    def resume(self) -> None:
        self._open.set()

    def _needed(self) -> bool:
        """A server of the cluster's own, on the disk of its only machine, would be of no use to anybody."""
        return self.bucket or len(self.nodes.known_nodes()) > 1

    def _holder(self, records: Iterable[ImageRecord]) -> str | None:
        """A node that has the image and can give it away."""
        found = (self.nodes.of_machine(machine) for record in records for machine in record.machines)
        return next((node_id for node_id in found if node_id is not None and self.nodes.fetches(node_id)), None)

    def _begin(self, digest: str, node_id: str) -> asyncio.Task[None]:
        work = partial(self._put, digest, node_id)
        task = self._putting[digest] = tasks.supervise(work, "store image", attempts=1)
        return task

    async def _put(self, digest: str, node_id: str) -> None:
        again = digest in self._again
        try:
            await self.call(self.nodes.handle(node_id), "store_image", digest, again, timeout_s=PUT_S)
            self._again.discard(digest)
            for record in self.images.of_digest(digest):
                if record.state is ImageState.READY:
                    await self.changes.change(record.id, stored=True)
            self._retries.pop(digest, None)
        except ShoalError as error:
            if not self.images.of_digest(digest):
                return  # it was deleted meanwhile
            before = self._retries.get(digest)
            pause_s = _FIRST_PAUSE_S if before is None else min(2 * before.pause_s, _LONGEST_PAUSE_S)
            if isinstance(error, FailedPrecondition | ImageNotFound):  # it cannot travel, or is gone from its machine
                pause_s = _LONGEST_PAUSE_S
            self._retries[digest] = _Retry(self.clock() + pause_s, pause_s)
            log.warning("image %s is not stored yet: %s", digest, error)
        finally:
            del self._putting[digest]


@dataclass(frozen=True, slots=True)
class _Retry:
    at: float
    pause_s: float


def to_store(records: Iterable[ImageRecord], busy: Collection[str]) -> dict[str, list[ImageRecord]]:
    """The records that are ready and not stored, by their digest, in the order of their age; none of `busy`. Memory
    (checkpoints) stays on its machine."""
    wanted = [
        record
        for record in records
        if not record.stored and record.state is ImageState.READY and record.kind is not ImageKind.CHECKPOINT
    ]
    found: dict[str, list[ImageRecord]] = {}
    for record in sorted(wanted, key=lambda each: each.created_at):
        if record.digest and record.digest not in busy:
            found.setdefault(record.digest, []).append(record)
    return found
