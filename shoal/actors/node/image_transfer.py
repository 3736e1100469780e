"""Images between this node and the object storage: each layer once, verified, several at a time; what was cut short
goes on where it was."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from shoal.actors.engines.travel import TravellingLayers
from shoal.actors.objects import PIECE, ObjectAccess, ObjectStore
from shoal.actors.stored_images import (
    BLOBS,
    IMAGES,
    LAYERS,
    MOST_BYTES,
    StoredImage,
    StoredLayer,
    damaged,
    key,
    read_image,
    read_layer,
    write_image,
    write_layer,
)
from shoal.model import tasks
from shoal.model.errors import FailedPrecondition, ImageNotFound, InvalidRequest, NotFound, Unavailable
from shoal.model.private_directory import make_private_directory

log = logging.getLogger("shoal.node")

SEVERAL: Final = 4
"""Layers of this node on their way at once, in each direction."""

_ATTEMPTS: Final = 3
"""Reads of a layer in a row that bring nothing, before it is given up."""

_STALE_S: Final = 86400.0
"""After that, what is left of a transfer that nobody took up again is removed."""

T = TypeVar("T")


@dataclass(slots=True)
class ImageTransfer:
    """`access`: how to reach the object storage, as the controller says; `directory`: for files on their way, of this
    node alone; `on_damaged`: is told of an image that is not stored as it was; `ensure_stored`: returns once an image
    is stored, or raises."""

    layers: TravellingLayers
    access: Callable[[], Awaitable[ObjectAccess]]
    directory: Path
    on_damaged: Callable[[str], Awaitable[None]]
    ensure_stored: Callable[[str], Awaitable[None]]
    _store: ObjectStore | None = None
    _reaching: asyncio.Lock = field(default_factory=asyncio.Lock)
    _slots: dict[str, asyncio.Semaphore] = field(
        default_factory=lambda: {"out": asyncio.Semaphore(SEVERAL), "in": asyncio.Semaphore(SEVERAL)}
    )
    _running: dict[tuple[str, str], asyncio.Task[Any]] = field(default_factory=dict)

    async def put(self, digest: str, again: bool = False) -> None:
        """Stores an image of this node; returns once all of it is stored. `again`: though it seems to be stored.
        `ImageNotFound`, `FailedPrecondition` (it cannot travel), `Unavailable`, `QuotaExceeded`."""
        await self._once("out", digest, lambda: self._put(digest, again))

    async def fetch(self, digest: str, reference: str) -> None:
        """Makes sure that this node has a stored image, under a name. `ImageNotFound`: it is not stored;
        `FailedPrecondition` (state `damaged`), `Unavailable`, `QuotaExceeded`."""
        await self._once("in", digest, lambda: self._fetch(digest, reference))

    async def tidy(self) -> None:
        """Removes what is left of transfers that nobody took up again."""
        await asyncio.to_thread(_remove_older, self.directory, time.time() - _STALE_S)

    async def close(self) -> None:
        """Ends what is on its way. Idempotent."""
        await tasks.stop(*self._running.values())
        self._store = None

    async def _put(self, digest: str, again: bool) -> None:
        store = await self._reach()
        async with self._forgetting():
            manifest = await asyncio.to_thread(self.layers.manifest, digest)
            if not again and await asyncio.to_thread(store.head, key(IMAGES, digest)) is not None:
                await asyncio.to_thread(self.layers.set_replaceable, digest)
                return
            put = functools.partial(self._put_layer, store, again)
            diff_ids = dict.fromkeys(manifest.layers)
            putting = (self._once("out", diff_id, functools.partial(put, diff_id)) for diff_id in diff_ids)
            stored = {layer.diff_id: layer for layer in await _all(putting)}
            image = StoredImage(digest, len(manifest.config), tuple(stored[each] for each in manifest.layers))
            await asyncio.to_thread(store.put, key(BLOBS, digest), manifest.config)
            await asyncio.to_thread(store.put, key(IMAGES, digest), write_image(image))
        await asyncio.to_thread(self.layers.set_replaceable, digest)

    async def _put_layer(self, store: ObjectStore, again: bool, diff_id: str) -> StoredLayer:
        async with self._slots["out"]:
            return await asyncio.to_thread(self._put_layer_now, store, diff_id, again)

    def _put_layer_now(self, store: ObjectStore, diff_id: str, again: bool) -> StoredLayer:
        known = None if again else _find_layer(store, diff_id)
        if known is not None:
            return known
        make_private_directory(self.directory)
        file = self.directory / f"out-{diff_id.removeprefix('sha256:')}"
        file.unlink(missing_ok=True)
        try:
            archive = self.layers.export_layer(diff_id, file)
            layer = StoredLayer(diff_id, archive.digest, archive.size)
            store.put(key(BLOBS, layer.digest), file, replace=again)
        finally:
            file.unlink(missing_ok=True)
        store.put(key(LAYERS, diff_id), write_layer(layer))
        return layer

    async def _fetch(self, digest: str, reference: str) -> None:
        store = await self._reach()
        try:
            async with self._forgetting():
                if await asyncio.to_thread(store.head, key(IMAGES, digest)) is None:
                    await self.ensure_stored(digest)  # it was just made elsewhere
                image, config = await asyncio.to_thread(_read_image, store, digest)
                get = functools.partial(self._fetch_layer, store, digest)
                layers = dict.fromkeys(image.layers)
                async with _in_thread(self.layers.want([layer.diff_id for layer in layers])):
                    await _all(self._once("in", each.diff_id, functools.partial(get, each)) for each in layers)
                    await asyncio.to_thread(self.layers.add_manifest, config, reference)
        except FailedPrecondition as error:
            if error.state == "damaged":
                log.warning("%s", error)
                await self.on_damaged(digest)
            raise
        tasks.shared(asyncio.to_thread(self.layers.tidy), "image tidying")

    async def _fetch_layer(self, store: ObjectStore, digest: str, layer: StoredLayer) -> None:
        async with self._slots["in"]:
            await asyncio.to_thread(self._fetch_layer_now, store, digest, layer)

    def _fetch_layer_now(self, store: ObjectStore, digest: str, layer: StoredLayer) -> None:
        if self.layers.has_layer(layer.diff_id):
            return
        make_private_directory(self.directory)
        file = self.directory / f"in-{layer.digest.removeprefix('sha256:')}"
        went_on = file.exists()
        try:
            self._get_and_import(store, layer, file)
        except InvalidRequest as error:
            file.unlink(missing_ok=True)
            if not went_on:
                raise damaged(digest, str(error)) from None
            self._fetch_layer_now(store, digest, layer)  # what an earlier transfer has left was bad
            return
        except NotFound as error:
            raise damaged(digest, f"layer {layer.diff_id}: {error}") from None
        except Unavailable:
            raise  # the file stays: the next transfer goes on from its end
        except BaseException:
            file.unlink(missing_ok=True)  # the disk is full, say
            raise
        file.unlink(missing_ok=True)

    def _get_and_import(self, store: ObjectStore, layer: StoredLayer, file: Path) -> None:
        """Unpacks it while it comes. What has come is in the file, too, until all has."""
        self.layers.import_layer(_pieces(store, layer, file), layer.diff_id, layer.digest)

    async def _once(self, way: str, what: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Whoever asks for the same while it is on its way waits for that transfer."""
        task: asyncio.Task[T] | None = self._running.get((way, what))
        if task is None:
            task = self._running[way, what] = tasks.shared(work(), f"image transfer {way}")
            task.add_done_callback(lambda _: self._running.pop((way, what), None))
        return await asyncio.shield(task)

    async def _reach(self) -> ObjectStore:
        async with self._reaching:
            if self._store is None:
                access = await self.access()
                self._store = await asyncio.to_thread(access.connect)
            return self._store

    @contextlib.asynccontextmanager
    async def _forgetting(self) -> AsyncIterator[None]:
        """The storage may be elsewhere after it was away: then the controller is asked again."""
        try:
            yield
        except Unavailable:
            self._store = None  # not closed: another transfer may still use it
            raise


def _pieces(store: ObjectStore, layer: StoredLayer, file: Path) -> Iterator[bytes]:
    """A layer's archive: what of it is in the file, then the rest, which goes there as well. Reading goes on where it
    broke off, as often as it gets further."""
    name = key(BLOBS, layer.digest)
    with file.open("ab+") as kept:
        kept.seek(0)
        have = 0
        while piece := kept.read(PIECE):
            have += len(piece)
            yield piece
        failed = 0
        while have != layer.size:
            before = have
            try:
                for piece in store.read(name, start=have):
                    have += len(piece)
                    kept.write(piece)
                    yield piece
                if have != layer.size:
                    _check_size(store, layer, name)
                    raise Unavailable(f"{name} ended after {have} of {layer.size} bytes")
            except Unavailable:
                failed = 1 if have > before else failed + 1
                if failed >= _ATTEMPTS:
                    raise


def _check_size(store: ObjectStore, layer: StoredLayer, name: str) -> None:
    info = store.head(name)
    if info is None:
        raise NotFound(f"there is no object {name}")
    if info.size != layer.size:
        raise InvalidRequest(f"layer {layer.diff_id} has {info.size} bytes instead of {layer.size}", field="image")


def _find_layer(store: ObjectStore, diff_id: str) -> StoredLayer | None:
    """The layer, if it is stored."""
    try:
        known = read_layer(diff_id, _read(store, key(LAYERS, diff_id)))
    except NotFound:
        return None
    blob = None if known is None else store.head(key(BLOBS, known.digest))
    return known if known is not None and blob is not None and blob.size == known.size else None


def _read_image(store: ObjectStore, digest: str) -> tuple[StoredImage, bytes]:
    """An image's parts and its configuration."""
    try:
        manifest = _read(store, key(IMAGES, digest))
    except NotFound:
        raise ImageNotFound(f"image {digest} is not in the object storage", field="image") from None
    image = read_image(digest, manifest)
    try:
        config = _read(store, key(BLOBS, digest))
    except NotFound:
        raise damaged(digest, "its configuration is gone") from None
    if f"sha256:{hashlib.sha256(config).hexdigest()}" != digest:
        raise damaged(digest, "its configuration is another")
    return image, config


def _read(store: ObjectStore, name: str) -> bytes:
    return b"".join(store.read(name, length=MOST_BYTES))


async def _all(work: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all, once each has ended; raises the first error."""
    done = await asyncio.gather(*work, return_exceptions=True)
    for each in done:
        if isinstance(each, BaseException):
            raise each
    return [each for each in done if not isinstance(each, BaseException)]


@contextlib.asynccontextmanager
async def _in_thread(manager: AbstractContextManager[None]) -> AsyncIterator[None]:
    """A context manager that blocks."""
    await asyncio.to_thread(manager.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


def _remove_older(directory: Path, before: float) -> None:
    for file in directory.iterdir() if directory.exists() else ():
        with contextlib.suppress(FileNotFoundError):  # a transfer has just ended
            if file.stat().st_mtime < before:
                file.unlink()
