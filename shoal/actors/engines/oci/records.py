"""What the engine knows of its containers, on disk: written before the act, so that it is known after any crash.

<root>/containers/<key>/            all of a container; a name that begins with `gone-` is being removed
    record.json                     this module's
    config.json                     for the runtime (`runtimes.py`)
    root/                           where its root filesystem is mounted for the runtime
    upper/, work/, hosts, hostname  what it writes, unless it has a disk of its own: then they are there
    images/<number>/                the same of each image that is mounted into it
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

_RECORD: Final = "record.json"
_GONE: Final = "gone-"


class Stage(StrEnum):
    MAKING = "making"
    MADE = "made"
    REMOVING = "removing"


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """A process. `started`: in clock ticks after boot, which tells a later process of the same pid apart."""

    pid: int = 0
    started: int = 0


@dataclass(frozen=True, slots=True)
class ImageMount:
    """An image that is mounted into a container at `path`. `number`: its own among the container's; `holder`: the first
    process of the run in which it is mounted, (0, 0) until it is."""

    path: str
    digest: str
    number: int
    holder: ProcessRef = field(default_factory=ProcessRef)

    def hold_of(self, key: str) -> str:
        """By which name the container of that key holds its layers."""
        return f"{key}.{self.number}"


@dataclass(frozen=True, slots=True)
class Record:
    """One container. `digest`: its image's; `maker`: who makes it, while that is under way; `disk`: where its own disk
    is mounted, if it has one; `first`: its first process, of its latest run."""

    key: str
    digest: str
    runtime: str
    created_at: float
    labels: Mapping[str, str] = field(default_factory=dict)
    keep: bool = False
    stage: Stage = Stage.MAKING
    maker: ProcessRef = field(default_factory=ProcessRef)
    disk: str | None = None
    first: ProcessRef = field(default_factory=ProcessRef)
    images: tuple[ImageMount, ...] = ()

    def but(self, **changes: Any) -> Record:
        return replace(self, **changes)


_NAMES: Final = tuple(each.name for each in fields(Record))


class Records:
    """The containers of one engine, in `directory`. Methods block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[str, tuple[tuple[int, int], Record]] = {}

    def open(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def place(self, key: str) -> Path:
        """The container's directory."""
        return self._directory / key

    def get(self, key: str) -> Record | None:
        file = self.place(key) / _RECORD
        try:
            status = file.stat()
            version = (status.st_mtime_ns, status.st_ino)
            known = self._read.get(key)
            if known is not None and known[0] == version:
                return known[1]
            record = _decode(json.loads(file.read_text()))
        except FileNotFoundError:
            self._read.pop(key, None)
            return None
        self._read[key] = (version, record)
        return record

    def all(self) -> Iterator[Record]:
        """All of them. Some may come and go meanwhile."""
        for name in self._names():
            record = None if name.startswith(_GONE) else self.get(name)
            if record is not None:
                yield record

    def put(self, record: Record) -> None:
        """Writes it; durably, if a container is kept."""
        place = self.place(record.key)
        place.mkdir(mode=0o700, exist_ok=True)
        unfinished = place / f"{_RECORD}.new"
        with unfinished.open("w") as file:
            file.write(json.dumps(_encode(record)))  # `dump` would do without the encoder in C
            if record.keep:
                file.flush()
                os.fsync(file.fileno())
        unfinished.replace(place / _RECORD)

    def drop(self, key: str) -> None:
        """Removes a container's directory, in which nothing of its own is left. Idempotent."""
        self._read.pop(key, None)
        gone = self._directory / f"{_GONE}{key}"
        try:
            self.place(key).rename(gone)
        except FileNotFoundError:
            return
        shutil.rmtree(gone, ignore_errors=True)

    def sweep(self) -> list[str]:
        """Removes what a crash left of containers that are gone; the keys of those with a directory and no record."""
        names = self._names()
        for name in names:
            if name.startswith(_GONE):
                shutil.rmtree(self._directory / name, ignore_errors=True)
        return [name for name in names if not name.startswith(_GONE) and not (self.place(name) / _RECORD).exists()]

    def _names(self) -> list[str]:
        try:
            return [entry.name for entry in os.scandir(self._directory)]
        except FileNotFoundError:
            return []


def _encode(record: Record) -> dict[str, Any]:
    """As `asdict`, which copies all that it finds, would have it."""
    plain = {name: getattr(record, name) for name in _NAMES}
    for name in ("maker", "first"):
        process: ProcessRef = plain[name]
        plain[name] = {"pid": process.pid, "started": process.started}
    return {**plain, "labels": dict(record.labels), "images": [asdict(each) for each in record.images]}


def _decode(data: dict[str, Any]) -> Record:
    return Record(
        **{
            **data,
            "stage": Stage(data["stage"]),
            "maker": ProcessRef(**data["maker"]),
            "first": ProcessRef(**data["first"]),
            "images": tuple(
                ImageMount(**{**each, "holder": ProcessRef(**each["holder"])}) for each in data.get("images", ())
            ),
        }
    )
