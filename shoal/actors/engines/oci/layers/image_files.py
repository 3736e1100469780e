"""The images of a store: `images/<hex of the digest>/` with the configuration as it was given and some facts; and
the names that lead to them, `refs/<hash of the name>`."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.actors.engines.image_store import ImageConfig
from shoal.actors.engines.oci.layers.config_blob import parse_config
from shoal.actors.engines.oci.layers.digests import digest_of, hex_of, is_digest
from shoal.actors.engines.oci.layers.drafts import Draft
from shoal.actors.engines.oci.layers.files import read_json, write_json, write_whole
from shoal.actors.engines.references import check_reference

_CONFIG: Final = "config.json"
_FACTS: Final = "image.json"


@dataclass(frozen=True, slots=True)
class Image:
    """An image's record. `layers`: diff ids, lowest first."""

    digest: str
    config: ImageConfig
    layers: tuple[str, ...]
    created_at: float


class ImageFiles:
    """The images and their names."""

    def __init__(self, root: Path) -> None:
        self._images = root / "images"
        self._names = root / "refs"
        self._known: dict[str, Image] = {}  # an image never changes, but it may go

    def make(self) -> None:
        self._images.mkdir(mode=0o700, exist_ok=True)
        self._names.mkdir(mode=0o700, exist_ok=True)

    def find(self, reference: str) -> Image | None:
        """The image that a name or a digest leads to."""
        digest = self.resolve(reference)
        return None if digest is None else self.image(digest)

    def resolve(self, reference: str) -> str | None:
        """The digest that a reference stands for; `InvalidRequest` for one that is none."""
        check_reference(reference)
        if is_digest(reference):
            return reference
        said = read_json(self._name(reference))
        return None if said is None else str(said["digest"])

    def image(self, digest: str) -> Image | None:
        """The image of a digest."""
        path = self._images / hex_of(digest) / _CONFIG
        known = self._known.get(digest)
        if known is not None:
            if path.exists():
                return known
            self._known.pop(digest, None)
            return None
        blob = self.config_blob(digest)
        if blob is None:
            return None
        config, layers, created_at = parse_config(blob)
        image = Image(digest, config, layers, created_at or path.stat().st_ctime)
        self._known[digest] = image
        return image

    def config_blob(self, digest: str) -> bytes | None:
        """The configuration's bytes; None if they are not there, or not whole."""
        try:
            blob = (self._images / hex_of(digest) / _CONFIG).read_bytes()
        except FileNotFoundError:
            return None
        return blob if digest_of(blob) == digest else None

    def all(self) -> list[Image]:
        """Every image."""
        found = (self.image(f"sha256:{path.name}") for path in self._images.iterdir())
        return [image for image in found if image is not None]

    def publish(
        self, draft: Draft, blob: bytes, *, replaceable: bool, check: Callable[[Sequence[str]], object]
    ) -> Image:
        """Makes an image of a configuration, whose layers `check` finds or raises. Under the store's lock, shared."""
        digest = digest_of(blob)
        check(parse_config(blob)[1])
        made = draft.path / hex_of(digest)
        made.mkdir(0o700)
        write_whole(made / _CONFIG, blob)
        write_json(made / _FACTS, {"replaceable": replaceable})
        try:
            made.rename(self._images / hex_of(digest))
        except OSError:
            if self.image(digest) is None:
                raise
            if not replaceable:
                self.set_replaceable(digest, False)
        image = self.image(digest)
        assert image is not None
        return image

    def is_replaceable(self, digest: str) -> bool:
        """Whether it can be had again from elsewhere."""
        said = read_json(self._images / hex_of(digest) / _FACTS)
        return bool((said or {}).get("replaceable"))

    def set_replaceable(self, digest: str, replaceable: bool) -> None:
        write_json(self._images / hex_of(digest) / _FACTS, {"replaceable": replaceable}, durable=True)

    def used(self, digest: str) -> None:
        """Notes that it is used now."""
        try:
            os.utime(self._images / hex_of(digest))
        except FileNotFoundError:
            pass

    def used_at(self, digest: str) -> float:
        """Seconds since the epoch of its last use."""
        try:
            return (self._images / hex_of(digest)).stat().st_mtime
        except FileNotFoundError:
            return time.time()

    def take_away(self, digest: str, draft: Draft) -> None:
        """Removes an image and its names. Call it under the store's lock, alone."""
        self._known.pop(digest, None)
        for name, target in list(self.names()):
            if target == digest:
                self.unname(name)
        try:
            (self._images / hex_of(digest)).rename(draft.path / f"image-{hex_of(digest)}")
        except FileNotFoundError:
            pass

    def name(self, digest: str, reference: str) -> None:
        """Has a name lead to an image."""
        write_json(self._name(reference), {"reference": full_name(reference), "digest": digest})

    def unname(self, reference: str) -> None:
        """Takes a name away. Idempotent."""
        self._name(reference).unlink(missing_ok=True)

    def names(self) -> Iterator[tuple[str, str]]:
        """Every name and the digest that it leads to."""
        for path in self._names.iterdir():
            said = read_json(path)
            if said is not None:
                yield str(said["reference"]), str(said["digest"])

    def remove_broken(self, draft: Draft, whole: set[str]) -> None:
        """Takes away images that a crash of the machine has spoilt, also in a layer, and names that lead nowhere.
        `whole`: the layers that are there. Call it under the store's lock, alone."""
        for path in self._images.iterdir():
            image = self.image(f"sha256:{path.name}")
            if image is None or not whole.issuperset(image.layers):
                self._known.pop(f"sha256:{path.name}", None)
                path.rename(draft.path / f"image-{path.name}")
        for path in self._names.iterdir():
            said = read_json(path)
            if said is None or self.image(str(said["digest"])) is None:
                path.unlink()

    def _name(self, reference: str) -> Path:
        return self._names / hashlib.sha256(full_name(reference).encode()).hexdigest()


def full_name(reference: str) -> str:
    """The one way to write a name: with a tag, and without what stands for Docker's own registry."""
    name = reference
    for default in ("docker.io/", "index.docker.io/"):
        name = name.removeprefix(default)
    name = name.removeprefix("library/")
    last = name.rpartition("/")[2]
    return name if ":" in last or "@" in last else f"{name}:latest"
