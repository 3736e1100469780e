"""What the containers of a machine need of other parts of the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from shoal.actors.engines.image_store import ImageInfo
from shoal.actors.engines.oci.records import ProcessRef


class Layers(Protocol):
    """What a container needs of the layer store (`layers.py`)."""

    def open(self) -> None: ...

    def find(self, reference: str) -> ImageInfo | None: ...

    def lower_dirs(self, digest: str) -> tuple[Path, ...]: ...

    def hold(self, digest: str, key: str, *, durable: bool = False) -> None: ...

    def let_go(self, key: str) -> None: ...

    def close(self) -> None: ...


class Watching(Protocol):
    """Who is told what to watch (`watch.py`)."""

    def add(self, key: str, first: ProcessRef) -> None: ...

    def forget(self, key: str) -> None: ...
