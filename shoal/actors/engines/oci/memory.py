"""The memory of images: of a container in gVisor an image can be taken from which others go on where it was. Blocks:
called in the engine's threads.

<root>/memory/<hex of the image's digest>/    what gVisor wrote
<root>/memory/new-…/                          … and what was not finished: removed by the next `sweep`

An image with memory carries a label that no other image has, so that its digest is its own.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from shoal.actors.engines.image_store import ImageConfig, ImageInfo
from shoal.model.errors import ImageNotFound

_LABEL: Final = "shoal.memory"
_NEW: Final = "new-"


@dataclass(frozen=True, slots=True)
class Memories:
    """Those of one engine, in `directory`. `find_image`: of the layer store."""

    directory: Path
    find_image: Callable[[str], ImageInfo | None]

    def find(self, image: ImageInfo) -> Path | None:
        """The memory of an image; None for one without. `ImageNotFound` if it is not on this machine."""
        if _LABEL not in image.config.labels:
            return None
        path = self._path(image.digest)
        if not path.is_dir():
            raise ImageNotFound(f"the memory of image {image.reference} is not on this node")
        return path

    def new(self) -> Path:
        """A directory for memory that is about to be taken."""
        path = self.directory / f"{_NEW}{secrets.token_hex(8)}"
        path.mkdir(mode=0o700, parents=True)
        return path

    def keep(self, path: Path, image: ImageInfo) -> None:
        """Memory that was taken is an image's from now on."""
        path.rename(self._path(image.digest))

    def drop(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)

    def sweep(self, *, unfinished: bool = False) -> None:
        """Removes the memory of images that are gone; `unfinished`: also what a crash left."""
        if not self.directory.is_dir():
            return
        for path in self.directory.iterdir():
            is_new = path.name.startswith(_NEW)
            if unfinished if is_new else self.find_image(f"sha256:{path.name}") is None:
                self.drop(path)

    def _path(self, digest: str) -> Path:
        return self.directory / digest.removeprefix("sha256:")


def with_memory(config: ImageConfig) -> ImageConfig:
    """The defaults of an image with memory of its own."""
    return replace(config, labels={**config.labels, _LABEL: secrets.token_hex(16)})


def without_memory(config: ImageConfig) -> ImageConfig | None:
    """The defaults of an image of files alone, where the one below has memory; None: those of the one below."""
    if _LABEL not in config.labels:
        return None
    return replace(config, labels={name: value for name, value in config.labels.items() if name != _LABEL})
