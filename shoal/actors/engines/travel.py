"""What an engine offers whose images may go from node to node: their layers, one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from shoal.actors.engines.image_store import ImageInfo


class ImageManifest(Protocol):
    """What an image consists of. `config`: bytes, whose sha256 is the image's digest; `layers`: diff ids (the sha256 of
    the layer's tar), lowest first."""

    @property
    def config(self) -> bytes: ...

    @property
    def layers(self) -> tuple[str, ...]: ...


class LayerArchive(Protocol):
    """A layer in a file, compressed. `digest`: the file's; `size`: bytes."""

    @property
    def digest(self) -> str: ...

    @property
    def size(self) -> int: ...


class TravellingLayers(Protocol):
    """Layers and images of a node. All methods block, and may be called in several threads at once. What adds something
    is all or nothing."""

    def manifest(self, digest: str) -> ImageManifest:
        """`ImageNotFound`."""

    def has_layer(self, diff_id: str) -> bool:
        """Whether the layer is here, whole."""

    def want(self, layers: Sequence[str]) -> AbstractContextManager[None]:
        """Within it, none of these layers is removed once it is here."""

    def export_layer(self, diff_id: str, file: Path) -> LayerArchive:
        """Writes the layer to a new file. `ImageNotFound`; `FailedPrecondition`: it cannot travel."""

    def import_layer(self, pieces: Iterator[bytes], diff_id: str, digest: str) -> None:
        """Adds the layer whose archive comes in pieces, unless it is here: it is unpacked as they come. Raises what
        they raise; `InvalidRequest` (field `image`): they have another digest, or are not that layer."""

    def add_manifest(self, config: bytes, reference: str | None = None, *, replaceable: bool = True) -> ImageInfo:
        """Adds an image whose layers are here, under a name. `replaceable`: it may go when room is short."""

    def tidy(self) -> None:
        """Has what was added written to the disk, and keeps to the bound of what images may take."""

    def set_replaceable(self, digest: str, *, replaceable: bool = True) -> None:
        """Notes that an image can be had again from elsewhere. `ImageNotFound`."""
