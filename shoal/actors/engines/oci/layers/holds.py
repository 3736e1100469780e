"""Who uses which image: `holds/<key>`. What is held is neither removed nor evicted, also over a restart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from shoal.actors.engines.oci.layers.files import read_json, write_json
from shoal.model.errors import Internal

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")


@dataclass(frozen=True, slots=True)
class Hold:
    """What one container uses."""

    digest: str
    layers: tuple[str, ...]


class Holds:
    """The holds of a store."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, key: str, hold: Hold, *, durable: bool) -> None:
        """Takes the place of a former hold of the key."""
        write_json(self._path(key), {"digest": hold.digest, "layers": list(hold.layers)}, durable=durable)

    def remove(self, key: str) -> None:
        """Idempotent."""
        self._path(key).unlink(missing_ok=True)

    def all(self) -> dict[str, Hold]:
        """Every hold by its key."""
        found = {}
        for path in self._directory.iterdir():
            said = None if path.name.startswith(".") else read_json(path)
            if said is not None:
                found[path.name] = Hold(str(said["digest"]), tuple(said["layers"]))
        return found

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise Internal(f"{key!r} is no key of a container")
        return self._directory / key
