"""The layers of a store: `layers/<hex of the diff id>/`, with `fs/` as overlayfs takes it and `layer.json`; and
`l/<short>`, a link to each `fs`, so that many fit into the options of one mount, which are a page long."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.actors.engines.oci.layers.digests import hex_of
from shoal.actors.engines.oci.layers.drafts import Draft
from shoal.actors.engines.oci.layers.files import read_json, write_json, write_whole

FILES: Final = "fs"
_FACTS: Final = "layer.json"
_ON_DISK: Final = "on-disk"
"""A layer with this file is on the disk. One without it may be spoilt once the machine has been started anew."""
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_SHORTEST: Final = 4  # characters of a link: a million names


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer on this node. `size`: bytes of its files; `exact`: its archive can be made again from them; `link`: the
    short name of its files below `l/`."""

    diff_id: str
    size: int
    entries: int
    exact: bool
    link: str


class LayerDirs:
    """The layers' directories. A layer is there once its directory has its name: one rename."""

    def __init__(self, root: Path) -> None:
        self._layers = root / "layers"
        self._links = root / "l"
        self._known: dict[str, Layer] = {}  # a layer never changes, but it may go

    def make(self) -> None:
        self._layers.mkdir(mode=0o700, exist_ok=True)
        self._links.mkdir(mode=0o700, exist_ok=True)

    def path(self, diff_id: str) -> Path:
        return self._layers / hex_of(diff_id)

    def lower_dir(self, layer: Layer) -> Path:
        """The files, by a short path."""
        return self._links / layer.link

    def find(self, diff_id: str) -> Layer | None:
        """The layer, if it is there whole."""
        facts = self.path(diff_id) / _FACTS
        known = self._known.get(diff_id)
        if known is not None:
            if facts.exists():
                return known
            self._known.pop(diff_id, None)
            return None
        said = read_json(facts)
        if said is None:
            return None
        layer = Layer(diff_id, int(said["size"]), int(said["entries"]), bool(said["exact"]), str(said["link"]))
        self._known[diff_id] = layer
        return layer

    def all(self) -> list[Layer]:
        """Every layer."""
        found = (self.find(f"sha256:{path.name}") for path in self._layers.iterdir())
        return [layer for layer in found if layer is not None]

    def publish(self, draft: Draft, diff_id: str, *, size: int, entries: int, exact: bool) -> Layer:
        """Gives a draft's directory its name. If somebody else was first, theirs stays. Call it under the store's lock,
        shared is enough."""
        present = self.find(diff_id)
        if present is not None:
            return present
        layer = Layer(diff_id, size, entries, exact, self._link(diff_id))
        facts = {"diff_id": diff_id, "size": size, "entries": entries, "exact": exact, "link": layer.link}
        facts["boot"] = _BOOT.read_text().strip()
        write_json(draft.path / _FACTS, facts)
        target = self.path(diff_id)
        try:
            draft.path.rename(target)
        except OSError:
            present = self.find(diff_id)
            if present is None:
                raise
            return present
        return layer

    def take_away(self, diff_id: str, draft: Draft) -> None:
        """Moves a layer into a draft, which is removed later. Call it under the store's lock, alone."""
        layer = self.find(diff_id)
        self._known.pop(diff_id, None)
        if layer is not None:
            (self._links / layer.link).unlink(missing_ok=True)
        try:
            self.path(diff_id).rename(draft.path / hex_of(diff_id))
        except FileNotFoundError:
            pass

    def remove_broken(self, draft: Draft) -> None:
        """Takes away what a crash of the machine has spoilt, and links to nothing. Call it under the store's lock."""
        boot = _BOOT.read_text().strip()
        for path in self._layers.iterdir():
            said = read_json(path / _FACTS)
            whole = said is not None and (said["boot"] == boot or (path / _ON_DISK).exists())
            if not whole or not (path / FILES).is_dir():
                path.rename(draft.path / path.name)
        for link in self._links.iterdir():
            if not link.exists():
                link.unlink()

    def not_on_disk(self) -> list[Path]:
        """The layers' directories whose files the machine may not have written yet."""
        return [path for path in self._layers.iterdir() if not (path / _ON_DISK).exists()]

    @staticmethod
    def set_on_disk(path: Path) -> None:
        """Notes it, once it is so."""
        try:
            write_whole(path / _ON_DISK, b"", durable=True)
        except FileNotFoundError:
            pass  # it was removed meanwhile

    def _link(self, diff_id: str) -> str:
        """Makes the link, by the shortest part of the digest that is free."""
        name = base64.b32encode(bytes.fromhex(hex_of(diff_id))).decode().rstrip("=").lower()
        target = Path("..", "layers", hex_of(diff_id), FILES)
        for length in range(_SHORTEST, len(name) + 1):
            link = self._links / name[:length]
            try:
                link.symlink_to(target)
            except FileExistsError:
                if os.readlink(link) != str(target):
                    continue
            return link.name
        raise FileExistsError(str(self._links / name))
