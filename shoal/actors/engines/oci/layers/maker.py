"""Makes layers and images: in a draft first, and then by one rename."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shoal.actors.engines.oci.layers.digests import hex_of
from shoal.actors.engines.oci.layers.drafts import Draft, Drafts
from shoal.actors.engines.oci.layers.image_files import Image, ImageFiles
from shoal.actors.engines.oci.layers.layer_dirs import FILES, Layer, LayerDirs
from shoal.actors.engines.oci.layers.locks import locked
from shoal.actors.engines.oci.layers.program import Progress, run_layers
from shoal.model.errors import ImageNotFound, InvalidRequest

_MOST_ENTRIES: Final = 4 << 20  # files of one layer; the largest images have a million


@dataclass(frozen=True, slots=True)
class Maker:
    """`bound`: bytes of the largest layer."""

    lock: Path
    layer_locks: Path
    drafts: Drafts
    layers: LayerDirs
    images: ImageFiles
    bound: int

    @contextmanager
    def only_one(self, diff_id: str) -> Iterator[None]:
        """Waits until nobody else makes this layer."""
        with locked(self.layer_locks / hex_of(diff_id)):
            yield

    def unpack(
        self,
        command: str,
        request: dict[str, Any],
        around: Draft,
        progress: Progress | None = None,
        keep: Sequence[int] = (),
    ) -> Layer:
        """Makes a layer by a command of the program that unpacks, which inherits the descriptors `keep`. Nothing takes
        it away while `around` is there."""
        with self.drafts.new() as draft:
            made = self._run(command, request, draft, around, progress, keep)
            return self.publish_layer(made, draft, around)

    def unpack_exactly(self, command: str, request: dict[str, Any], around: Draft) -> Layer:
        """Like `unpack`, for an archive whose digest nobody has promised. One that cannot be made again (with holes or
        with a name twice) is replaced by one that can."""
        with self.drafts.new() as draft:
            made = self._run(command, request, draft, around, None)
            if made["exact"]:
                return self.publish_layer(made, draft, around)
            return self.unpack("commit", {"upper": str(draft.path / FILES)}, around)

    def _run(
        self,
        command: str,
        request: dict[str, Any],
        draft: Draft,
        around: Draft,
        progress: Progress | None,
        keep: Sequence[int] = (),
    ) -> dict[str, Any]:
        kept = (draft.descriptor, around.descriptor, *keep)
        return run_layers(command, {**request, **self.where(draft)}, keep=kept, progress=progress)

    def where(self, draft: Draft) -> dict[str, Any]:
        """What each request for a layer says."""
        return {"into": str(draft.path), "bounds": {"bytes": self.bound, "entries": _MOST_ENTRIES}}

    def publish_layer(self, made: dict[str, Any], draft: Draft, around: Draft) -> Layer:
        """Gives a layer that was made in a draft its name."""
        around.want((made["diff_id"],))
        with locked(self.lock, shared=True):
            return self._publish_layer(made, draft)

    def publish(self, blob: bytes, reference: str | None, draft: Draft, *, replaceable: bool = False) -> Image:
        """Makes an image of a configuration. `ImageNotFound`: a layer is not here."""
        with locked(self.lock, shared=True):
            return self._publish(blob, reference, draft, replaceable=replaceable)

    def publish_with_layer(
        self, made: dict[str, Any], draft: Draft, config: Callable[[str], bytes], reference: str | None, around: Draft
    ) -> Image:
        """Both, a little quicker: nobody can take the layer away in between. `config`: given the layer's diff id."""
        with locked(self.lock, shared=True):
            layer = self._publish_layer(made, draft)
            return self._publish(config(layer.diff_id), reference, around, replaceable=False)

    def _publish_layer(self, made: dict[str, Any], draft: Draft) -> Layer:
        facts = {name: made[name] for name in ("size", "entries", "exact")}
        return self.layers.publish(draft, made["diff_id"], **facts)

    def _publish(self, blob: bytes, reference: str | None, draft: Draft, *, replaceable: bool) -> Image:
        image = self.images.publish(draft, blob, replaceable=replaceable, check=self.need_layers)
        if reference is not None:
            self.images.name(image.digest, reference)
        return image

    def need(self, digest: str) -> Image:
        """The image; `ImageNotFound`."""
        image = self.images.find(digest)
        if image is None:
            raise ImageNotFound(f"image {digest} is not on this node")
        return image

    def need_layers(self, diff_ids: Sequence[str]) -> list[Layer]:
        """The layers; `ImageNotFound`."""
        found = [(diff_id, self.layers.find(diff_id)) for diff_id in diff_ids]
        missing = [diff_id for diff_id, layer in found if layer is None]
        if missing:
            raise ImageNotFound(f"layer {missing[0]} is not on this node")
        return [layer for _, layer in found if layer is not None]


def check_archive(archive: Path) -> str:
    """The path of a file or directory as the program takes it; `InvalidRequest` (field `image`) without it."""
    path = os.path.abspath(archive)
    if not os.path.exists(path):
        raise InvalidRequest(f"image: there is no {path}", field="image")
    return path
