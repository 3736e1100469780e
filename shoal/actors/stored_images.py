"""How images lie in the object storage: as OCI manifests and blobs. Pure.

blobs/sha256/<hex>      a layer, compressed with zstd, or an image's configuration; named by its own content
layers/sha256/<hex>     which blob has the layer of that diff id, so that each layer is stored once
images/sha256/<hex>     an image's manifest, by the image's digest; written last: where it is, all of it is
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from shoal.model.errors import FailedPrecondition

IMAGES: Final = "images/sha256/"
LAYERS: Final = "layers/sha256/"
BLOBS: Final = "blobs/sha256/"

MOST_BYTES: Final = 4 << 20
"""Of a manifest or a configuration."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"
_DIFF_ID = "shoal.diff-id"


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer. `digest`, `size`: of its blob."""

    diff_id: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image. `layers`: lowest first; `config_size`: bytes of its configuration, whose digest is the image's."""

    digest: str
    config_size: int
    layers: tuple[StoredLayer, ...]

    def needs(self) -> set[str]:
        """All objects that it needs."""
        needed = {key(IMAGES, self.digest), key(BLOBS, self.digest)}
        for layer in self.layers:
            needed |= {key(BLOBS, layer.digest), key(LAYERS, layer.diff_id)}
        return needed


def key(folder: str, digest: str) -> str:
    """The key of a digest in one of the folders above."""
    return folder + digest.removeprefix("sha256:")


def digest_of(stored: str) -> str:
    """The digest in a key; empty where it is none of ours."""
    found = f"sha256:{stored.rpartition('/')[2]}"
    return found if _DIGEST.fullmatch(found) else ""


def write_image(image: StoredImage) -> bytes:
    """The manifest."""
    layers = [{**_part(_LAYER, each.digest, each.size), "annotations": {_DIFF_ID: each.diff_id}}
              for each in image.layers]  # fmt: skip
    config = _part(_CONFIG, image.digest, image.config_size)
    whole = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": layers}
    return json.dumps(whole, separators=(",", ":")).encode()


def read_image(digest: str, content: bytes) -> StoredImage:
    """The image of a manifest; `FailedPrecondition` (state `damaged`) where it is not that of the digest."""
    try:
        whole = json.loads(content)
        if whole["config"]["digest"] != digest:
            raise ValueError("it is of another image")
        layers = tuple(_layer(each["annotations"][_DIFF_ID], each) for each in whole["layers"])
        return StoredImage(digest, int(whole["config"]["size"]), layers)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(digest, f"its manifest cannot be read: {str(error)[:200]}") from None


def write_layer(layer: StoredLayer) -> bytes:
    """Which blob has a layer."""
    return json.dumps(_part(_LAYER, layer.digest, layer.size)).encode()


def read_layer(diff_id: str, content: bytes) -> StoredLayer | None:
    """The inverse; None for what makes no sense."""
    try:
        return _layer(diff_id, json.loads(content))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def damaged(digest: str, why: str) -> FailedPrecondition:
    """An image in the storage is not what it was."""
    return FailedPrecondition(f"image {digest} is damaged in the object storage: {why}", state="damaged", field="image")


def _part(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest, "size": size}


def _layer(diff_id: Any, part: Any) -> StoredLayer:
    digest, size = part["digest"], part["size"]
    if not (_DIGEST.fullmatch(diff_id) and _DIGEST.fullmatch(digest) and isinstance(size, int) and size >= 0):
        raise ValueError("a part of it is none")
    return StoredLayer(diff_id, digest, size)
