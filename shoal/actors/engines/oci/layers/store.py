"""The layer store: see the package."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.actors.engines.disks import mounts
from shoal.actors.engines.image_store import ImageConfig, ImageInfo
from shoal.actors.engines.oci.layers import sources
from shoal.actors.engines.oci.layers.ahead import TakingAhead
from shoal.actors.engines.oci.layers.config_blob import make_config, parse_config
from shoal.actors.engines.oci.layers.drafts import Drafts
from shoal.actors.engines.oci.layers.eviction import Candidate, to_evict
from shoal.actors.engines.oci.layers.holds import Hold, Holds
from shoal.actors.engines.oci.layers.image_files import Image, ImageFiles
from shoal.actors.engines.oci.layers.layer_dirs import LayerDirs
from shoal.actors.engines.oci.layers.locks import locked
from shoal.actors.engines.oci.layers.maker import Maker, check_archive
from shoal.actors.engines.oci.layers.pipes import passed_on
from shoal.actors.engines.oci.layers.program import Progress, run_layers
from shoal.actors.engines.oci.layers.sources import Credentials
from shoal.actors.engines.oci.layers.taking import Changed
from shoal.actors.engines.references import check_reference
from shoal.model.errors import FailedPrecondition

_DIRECTORIES: Final = ("tmp", "holds", "locks")
_SHARE: Final = 0.5
"""The part of the disk that images may take where no bound is given."""


_SPARE_S: Final = 300.0
"""Seconds within which an image that somebody has asked for is started from."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an image consists of. `config`: the OCI configuration, whose sha256 is the digest; `layers`: diff ids,
    lowest first."""

    digest: str
    config: bytes
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Blob:
    """A file that travels."""

    digest: str
    size: int


class LayerStore:
    """Layers and images below a directory. All methods block; safe for several threads and processes at once.

    What adds something is all or nothing. Whoever starts a container holds its image first (`hold`), and lets go once
    the container's mount is gone. `limit`: bytes that images may take before `shrink` evicts some (None: half of the
    disk).
    """

    def __init__(self, root: Path, limit: int | None = None) -> None:
        self._root = root
        self._limit = limit
        self._lock = root / "lock"
        self._drafts = Drafts(root / "tmp", self._lock)
        self._layers = LayerDirs(root)
        self._images = ImageFiles(root)
        self._holds = Holds(root / "holds")
        self._ahead = TakingAhead(lambda: self._maker)

    @property
    def _maker(self) -> Maker:
        return Maker(self._lock, self._root / "locks", self._drafts, self._layers, self._images, self.limit())

    def open(self) -> None:
        """Makes the directories and removes what a crash has left half-made. Others may use the store meanwhile."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in _DIRECTORIES:
            (self._root / name).mkdir(mode=0o700, exist_ok=True)
        self._layers.make()
        self._images.make()
        with locked(self._lock):
            self._drafts.remove_left()
        with self._drafts.new() as broken, locked(self._lock):
            self._layers.remove_broken(broken)
            self._images.remove_broken(broken, {layer.diff_id for layer in self._layers.all()})

    # Looking

    def find(self, reference: str) -> ImageInfo | None:
        """The image that a name or a digest leads to, if it is here; `InvalidRequest` for what is no reference."""
        image = self._images.find(reference)
        if image is None:
            return None
        self._images.used(image.digest)
        return self._info(image, reference)

    def images(self) -> list[ImageInfo]:
        """Every image, once for each of its names, and those without a name by their digest."""
        names: dict[str, list[str]] = {}
        for name, digest in self._images.names():
            names.setdefault(digest, []).append(name)
        return [
            self._info(image, name) for image in self._images.all() for name in names.get(image.digest, [image.digest])
        ]

    def lower_dirs(self, digest: str) -> tuple[Path, ...]:
        """The directories of its layers, uppermost first, as overlayfs takes them. `ImageNotFound`."""
        layers = self._maker.need_layers(self._maker.need(digest).layers)
        return tuple(self._layers.lower_dir(layer) for layer in reversed(layers))

    # Using

    def hold(self, digest: str, key: str, *, durable: bool = False) -> None:
        """Keeps an image for a container until `let_go`. `durable`: also over a crash of the machine, which takes
        longer if its layers are new. `ImageNotFound`."""
        if durable:
            self.settle()
        with locked(self._lock, shared=True):
            image = self._maker.need(digest)
            self._maker.need_layers(image.layers)
            self._holds.add(key, Hold(image.digest, image.layers), durable=durable)
        self._images.used(image.digest)

    def let_go(self, key: str) -> None:
        """Ends the hold of a container. Idempotent."""
        self._holds.remove(key)

    def held(self) -> dict[str, str]:
        """The digest of the image that each key holds."""
        return {key: hold.digest for key, hold in self._holds.all().items()}

    # Adding

    def add_root_filesystem(self, archive: Path, reference: str, config: ImageConfig) -> ImageInfo:
        """Makes an image of one layer from a tar of a root filesystem, compressed or not, and names it.
        `InvalidRequest` (field `image`) for a bad archive, `QuotaExceeded` for a full disk."""
        check_reference(reference)
        request = {"archive": check_archive(archive)}
        with self._drafts.new() as draft:
            layer = self._maker.unpack_exactly("unpack", request, draft)
            image = self._maker.publish(make_config(config, (layer.diff_id,)), reference, draft)
        return self._info(image, reference)

    def take_upper(self, frozen: AbstractContextManager[Changed], reference: str | None = None) -> ImageInfo:
        """Makes an image of what a container has changed, or of a directory. `frozen` is held for as long only as files
        are copied: nothing changes there within it."""
        if reference is not None:
            check_reference(reference)
        with self._ahead.taking() as taken:
            with frozen as changed:
                copied = taken.copy(changed)
            image = taken.publish(copied, reference)
        return self._info(image, reference or image.digest)

    def get_ready(self) -> None:
        """Makes the next `take_upper` quicker, by a program that waits for it, until `forget_ready`."""
        self._ahead.provide()

    def forget_ready(self) -> None:
        """Ends what `get_ready` has started. Idempotent."""
        self._ahead.drop()

    def close(self) -> None:
        """The same, and nothing is got ready any more. Idempotent."""
        self._ahead.close()

    def tag(self, digest: str, reference: str) -> None:
        """Gives an image one more name. `ImageNotFound`."""
        check_reference(reference)
        with locked(self._lock, shared=True):
            self._images.name(self._maker.need(digest).digest, reference)

    # From and to elsewhere

    def pull(
        self,
        reference: str,
        credentials: Credentials | None = None,
        progress: Progress | None = None,
        *,
        name: str | None = None,
    ) -> ImageInfo:
        """Fetches the image of a reference from its registry, also if there is one of that name here, and names it so,
        or `name` instead, by which it can't be fetched again.
        Without credentials AWS's own count for its registries, and else those of Docker's configuration.
        `ImageNotFound` with the reason if it cannot be had, `Unavailable` if the registry does not answer,
        `InvalidRequest` (field `image`) for one that is broken or for another architecture, `QuotaExceeded` for a full
        disk."""
        check_reference(reference)
        with self._drafts.new() as draft:
            image = sources.fetch(
                self._maker,
                sources.in_registry(reference, credentials),
                name or reference,
                draft,
                replaceable=name is None,
                progress=progress,
            )
        return self._info(image, name or reference)

    def add_image(self, path: Path, reference: str | None = None, *, name: str = "") -> ImageInfo:
        """Adds the image in an archive of `docker save`, or in a directory in the OCI layout, and names it. `name`:
        which of several. `InvalidRequest` (field `image`)."""
        if reference is not None:
            check_reference(reference)
        with self._drafts.new() as draft:
            source = sources.at_path(path, name)
            image = sources.fetch(self._maker, source, reference, draft, replaceable=False, progress=None)
        return self._info(image, reference or image.digest)

    def push(self, digest: str, reference: str, credentials: Credentials | None = None) -> str:
        """Sends an image to the registry of a reference; returns the digest by which that knows it. `ImageNotFound`,
        `Unavailable`; `FailedPrecondition` as for `export_layer`."""
        check_reference(reference, "reference")
        with self._drafts.new() as draft:
            image = self._maker.need(digest)
            draft.want(image.layers)
            layers = self._exact(image.layers)
            blob = self._images.config_blob(digest) or b""
            return sources.push(sources.in_registry(reference, credentials), blob, layers, draft)

    # Travel between nodes

    def manifest(self, digest: str) -> Manifest:
        """What an image consists of. `ImageNotFound`."""
        image = self._maker.need(digest)
        blob = self._images.config_blob(digest)
        assert blob is not None
        return Manifest(image.digest, blob, image.layers)

    def has_layer(self, diff_id: str) -> bool:
        """Whether the layer is here, whole."""
        return self._layers.find(diff_id) is not None

    @contextmanager
    def want(self, layers: Sequence[str]) -> Iterator[None]:
        """Within it, none of these layers (diff ids) is removed once it is here: for those that fetch one by one."""
        with self._drafts.new() as draft:
            draft.want(tuple(layers))
            yield

    def export_layer(self, diff_id: str, file: Path) -> Blob:
        """Writes a layer's archive, compressed with zstd, to a new file. `ImageNotFound`: the layer is not here;
        `FailedPrecondition`: its archive, of a rare kind, cannot be made again from its files."""
        with self._drafts.new() as draft:
            draft.want((diff_id,))
            ((_, layer),) = self._exact((diff_id,))
            request = {
                "layer": str(layer),
                "diff_id": diff_id,
                "output": os.path.abspath(file),
                "compression": "zstd",
            }
            made = run_layers("export", request, keep=(draft.descriptor,))
        return Blob(str(made["digest"]), int(made["size"]))

    def import_layer(self, pieces: Iterator[bytes], diff_id: str, digest: str = "") -> None:
        """Unpacks the archive of a layer, compressed or not, as its pieces come, unless it is here. One at a time for
        each layer; whoever comes second waits. Raises what the pieces raise; `InvalidRequest` (field `image`) if they
        are not the archive of the diff id, or not the file of the digest."""
        with self._maker.only_one(diff_id):
            if self.has_layer(diff_id):
                return
            with self._drafts.new() as draft, passed_on(pieces) as descriptor:
                request = {"archive": f"/proc/self/fd/{descriptor}", "diff_id": diff_id, "digest": digest}
                self._maker.unpack("unpack", request, draft, keep=(descriptor,))

    def add_manifest(self, config: bytes, reference: str | None = None, *, replaceable: bool = True) -> ImageInfo:
        """Makes an image of a configuration whose layers are all here, and names it. `replaceable`: it can be had again
        from where it came, so it may be evicted. `ImageNotFound`: a layer is not here."""
        if reference is not None:
            check_reference(reference)
        with self._drafts.new() as draft:
            draft.want(parse_config(config)[1])
            image = self._maker.publish(config, reference, draft, replaceable=replaceable)
        return self._info(image, reference or image.digest)

    def set_replaceable(self, digest: str, *, replaceable: bool = True) -> None:
        """Notes whether the image can be had again from elsewhere, and so may be evicted. `ImageNotFound`."""
        self._images.set_replaceable(self._maker.need(digest).digest, replaceable)

    # Going

    def remove(self, reference: str) -> None:
        """Takes a name away (with an image's last name the image, too), or by a digest the image with all its names,
        and the layers that no other image has. Idempotent. `FailedPrecondition` if a container uses the image."""
        with self._drafts.new() as gone, locked(self._lock):
            digest = self._images.resolve(reference)
            if digest is None:
                return
            others = [name for name, target in self._images.names() if target == digest]
            if reference != digest and len(others) > 1:
                self._images.unname(reference)
                return
            users = [key for key, hold in self._holds.all().items() if hold.digest == digest]
            if users:
                raise FailedPrecondition(
                    f"image {reference} is in use by {users[0]}; remove what was started from it first", state="in_use"
                )
            self._images.take_away(digest, gone)
            for diff_id in self._unneeded():
                self._layers.take_away(diff_id, gone)

    def limit(self) -> int:
        """Bytes that images may take before some are evicted."""
        return self._limit or int(shutil.disk_usage(self._root).total * _SHARE)

    def used(self) -> int:
        """Bytes of all layers' files."""
        return sum(layer.size for layer in self._layers.all())

    def shrink(self, limit: int | None = None, *, spare_s: float = 0.0) -> list[str]:
        """Evicts images until all take at most `limit` bytes (None: the store's own): those first that were used
        longest ago, and none that is in use, was used within `spare_s` seconds, or cannot be had again from elsewhere.
        Returns their digests."""
        bound = self.limit() if limit is None else limit
        if self.used() <= bound:
            return []
        with self._drafts.new() as gone, locked(self._lock):
            sizes = {layer.diff_id: layer.size for layer in self._layers.all()}
            unneeded = self._unneeded()
            for diff_id in unneeded:
                self._layers.take_away(diff_id, gone)
                del sizes[diff_id]
            keep, before = set(self.held().values()), time.time() - spare_s
            images = [self._candidate(image, keep, before) for image in self._images.all()]
            evicted = to_evict(images, sizes, bound, self._busy())
            for digest in evicted:
                self._images.take_away(digest, gone)
            for diff_id in self._unneeded():
                self._layers.take_away(diff_id, gone)
        return evicted

    def tidy(self) -> None:
        """What is to be done once something was added, while nobody waits for it: see `settle` and `shrink`."""
        self.settle()
        self.shrink(spare_s=_SPARE_S)

    def settle(self) -> None:
        """Has the machine write all new layers to its disk. Until then a crash of the machine may cost them."""
        unwritten = self._layers.not_on_disk()
        if not unwritten:
            return
        directory = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mounts.sync(directory)
        finally:
            os.close(directory)
        for path in unwritten:
            self._layers.set_on_disk(path)

    def _exact(self, diff_ids: Sequence[str]) -> list[tuple[str, Path]]:
        """The layers' directories, where their archives can be made again."""
        for layer in self._maker.need_layers(diff_ids):
            if not layer.exact:
                raise FailedPrecondition(f"layer {layer.diff_id} has a form in which it cannot travel", state="inexact")
        return [(diff_id, self._layers.path(diff_id)) for diff_id in diff_ids]

    def _candidate(self, image: Image, keep: Collection[str], before: float) -> Candidate:
        used_at = self._images.used_at(image.digest)
        may_go = image.digest not in keep and used_at <= before and self._images.is_replaceable(image.digest)
        return Candidate(image.digest, image.layers, used_at, may_go)

    def _busy(self) -> set[str]:
        """The layers that somebody uses or waits for. Under the store's lock, alone."""
        return self._drafts.wanted().union(*(hold.layers for hold in self._holds.all().values()))

    def _unneeded(self) -> list[str]:
        """The layers that no image has and nobody uses. Under the store's lock, alone."""
        needed = self._busy().union(*(image.layers for image in self._images.all()))
        return [layer.diff_id for layer in self._layers.all() if layer.diff_id not in needed]

    def _info(self, image: Image, reference: str) -> ImageInfo:
        layers = (self._layers.find(diff_id) for diff_id in image.layers)
        size = sum(layer.size for layer in layers if layer is not None)
        return ImageInfo(reference, image.digest, image.config, size, image.created_at)
