"""The layer store: see the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from shoal.actors.engines.image_store import ImageConfig, ImageInfo
from shoal.actors.engines.oci.layers.config_blob import make_config
from shoal.actors.engines.oci.layers.drafts import Draft, Drafts
from shoal.actors.engines.oci.layers.holds import Hold, Holds
from shoal.actors.engines.oci.layers.image_files import Image, ImageFiles
from shoal.actors.engines.oci.layers.layer_dirs import Layer, LayerDirs
from shoal.actors.engines.oci.layers.locks import locked
from shoal.actors.engines.oci.layers.program import run_layers
from shoal.actors.engines.references import check_reference
from shoal.model.errors import FailedPrecondition, ImageNotFound

_DIRECTORIES: Final = ("tmp", "holds", "locks")


class LayerStore:
    """Layers and images below a directory. All methods block; safe for several threads and processes at once.

    What adds something is all or nothing. Whoever starts a container holds its image first (`hold`), and lets go once
    the container's mount is gone.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = root / "lock"
        self._drafts = Drafts(root / "tmp", self._lock)
        self._layers = LayerDirs(root)
        self._images = ImageFiles(root)
        self._holds = Holds(root / "holds")

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

    def find(self, reference: str) -> ImageInfo | None:
        """The image that a name or a digest leads to, if it is here; `InvalidRequest` for what is no reference."""
        image = self._images.find(reference)
        return None if image is None else self._info(image, reference)

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
        layers = self._need_layers(self._need(digest))
        return tuple(self._layers.lower_dir(layer) for layer in reversed(layers))

    def hold(self, digest: str, key: str, *, durable: bool = False) -> None:
        """Keeps an image for a container until `let_go`. `durable`: also over a crash of the machine (some ms).
        `ImageNotFound`."""
        with locked(self._lock, shared=True):
            image = self._need(digest)
            self._need_layers(image)
            self._holds.add(key, Hold(image.digest, image.layers), durable=durable)
        self._images.used(image.digest)

    def let_go(self, key: str) -> None:
        """Ends the hold of a container. Idempotent."""
        self._holds.remove(key)

    def held(self) -> dict[str, str]:
        """The digest of the image that each key holds."""
        return {key: hold.digest for key, hold in self._holds.all().items()}

    def add_root_filesystem(self, archive: Path, reference: str, config: ImageConfig) -> ImageInfo:
        """Makes an image of one layer from a tar of a root filesystem, compressed or not, and names it.
        `InvalidRequest` (field `image`) for a bad archive, `QuotaExceeded` for a full disk."""
        check_reference(reference)
        with self._drafts.new() as draft:
            layer = self._unpack({"archive": str(archive.absolute())}, draft)
            draft.want((layer.diff_id,))
            return self._publish(draft, make_config(config, (layer.diff_id,)), reference)

    def tag(self, digest: str, reference: str) -> None:
        """Gives an image one more name. `ImageNotFound`."""
        check_reference(reference)
        with locked(self._lock, shared=True):
            self._images.name(self._need(digest).digest, reference)

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
            self._take_away(digest, gone)

    def _take_away(self, digest: str, gone: Draft) -> None:
        """Removes an image, and the layers that nobody needs any more. Under the store's lock, alone."""
        self._images.take_away(digest, gone)
        needed = self._drafts.wanted()
        needed.update(*(image.layers for image in self._images.all()))
        needed.update(*(hold.layers for hold in self._holds.all().values()))
        for layer in self._layers.all():
            if layer.diff_id not in needed:
                self._layers.take_away(layer.diff_id, gone)

    def _unpack(self, request: dict[str, Any], around: Draft) -> Layer:
        """Unpacks a layer's archive. Nothing takes it away while the draft `around` is there."""
        with self._drafts.new() as draft:
            made = run_layers(
                "unpack", {**request, "into": str(draft.path)}, keep=(draft.descriptor, around.descriptor)
            )
            around.want((made["diff_id"],))
            with locked(self._lock, shared=True):
                return self._layers.publish(
                    draft, made["diff_id"], size=made["size"], entries=made["entries"], exact=made["exact"]
                )

    def _publish(self, draft: Draft, blob: bytes, reference: str | None, *, replaceable: bool = False) -> ImageInfo:
        with locked(self._lock, shared=True):
            image = self._images.publish(draft, blob, replaceable=replaceable)
            self._need_layers(image)
            if reference is not None:
                self._images.name(image.digest, reference)
        return self._info(image, reference or image.digest)

    def _need(self, digest: str) -> Image:
        image = self._images.find(digest)
        if image is None:
            raise ImageNotFound(f"image {digest} is not on this node")
        return image

    def _need_layers(self, image: Image) -> list[Layer]:
        found = [(diff_id, self._layers.find(diff_id)) for diff_id in image.layers]
        missing = [diff_id for diff_id, layer in found if layer is None]
        if missing:
            raise ImageNotFound(f"layer {missing[0]} of image {image.digest} is not on this node")
        return [layer for _, layer in found if layer is not None]

    def _info(self, image: Image, reference: str) -> ImageInfo:
        layers = (self._layers.find(diff_id) for diff_id in image.layers)
        size = sum(layer.size for layer in layers if layer is not None)
        return ImageInfo(reference, image.digest, image.config, size, image.created_at)
