"""One small file per container, written before the container is made and removed after it is gone.

After a crash the files tell which containers were wanted, for which sandbox, and with which address. Any other
container is removed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.model.errors import ShoalError
from shoal.model.ids import CONTAINER
from shoal.model.mounts import MountSpec, mounts_of
from shoal.model.spec import ContainerShape

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Stage(StrEnum):
    """How far a container is."""

    MAKING = "making"  # nobody depends on it yet: after a crash it is removed
    READY = "ready"  # its agent and its network are up
    STOPPED = "stopped"  # nothing runs in it, or shall; its disk is kept


@dataclass(frozen=True, slots=True)
class ExposedPort:
    """A port in the container that a port of the node leads to. `listen`: the node's port; 0: not chosen yet."""

    port: int
    private: bool
    listen: int = 0


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """A container of this node. `sandbox_id`: None while it waits for one, and `slot_id`: the slot that keeps it ready
    for that.

    `pid` is the agent's in the node's pid namespace and `started` when it started, in clock ticks after boot (0: not
    known); `ip` is its address on the sandbox network; `mounts`: what it mounts of what outlives it;
    `images`: the digest of the image that is mounted at each path; `resumed`: it went on from memory when it started.
    """

    key: str
    shape: ContainerShape
    created_at: float
    sandbox_id: str | None = None
    stage: Stage = Stage.MAKING
    pid: int = 0
    started: int = 0
    ip: str | None = None
    exposed: tuple[ExposedPort, ...] = ()
    slot_id: str | None = None
    mounts: tuple[MountSpec, ...] = ()
    images: Mapping[str, str] = field(default_factory=dict)
    resumed: bool = False

    @property
    def ready(self) -> bool:
        return self.stage is Stage.READY

    @property
    def kept(self) -> bool:
        """Whether it has run and outlives its processes."""
        return self.shape.persistent and self.sandbox_id is not None and self.stage is not Stage.MAKING

    def but(self, **changes: object) -> ContainerRecord:
        return replace(self, **changes)  # type: ignore[arg-type]


class RecordFiles:
    """The records of one node, in `directory`. Each write is atomic."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def load(self) -> dict[str, ContainerRecord]:
        """All records by key. Unreadable and foreign files are removed; the containers behind them are then swept."""
        return await asyncio.to_thread(self._load)

    async def put(self, record: ContainerRecord) -> None:
        await asyncio.to_thread(self.write, record)

    def write(self, record: ContainerRecord) -> None:
        """The same; blocks."""
        file = self._directory / f"{record.key}.json"
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(record, default=_by_fields))
        temporary.replace(file)

    def drop(self, key: str) -> None:
        """Removes one. Idempotent; blocks."""
        (self._directory / f"{key}.json").unlink(missing_ok=True)

    def _load(self) -> dict[str, ContainerRecord]:
        self._directory.mkdir(parents=True, exist_ok=True)
        records = read_records(self._directory)
        for file in self._directory.iterdir():
            if file.stem not in records or file.suffix != ".json":
                file.unlink(missing_ok=True)
        return records


def _by_fields(value: DataclassInstance) -> dict[str, Any]:
    """As `asdict` has it, which copies all that it finds."""
    return {one.name: getattr(value, one.name) for one in fields(value)}


def read_records(directory: Path) -> dict[str, ContainerRecord]:
    """The records in a directory, by key; what is none, or cannot be read, is passed over."""
    found = (_read(file) for file in (directory.iterdir() if directory.is_dir() else ()))
    return {record.key: record for record in found if record is not None}


def _read(file: Path) -> ContainerRecord | None:
    if file.suffix != ".json" or not CONTAINER.fullmatch(file.stem):
        return None
    try:
        data = json.loads(file.read_text())
        exposed = tuple(ExposedPort(**port) for port in data.get("exposed", ()))
        if "ready" in data:  # of an earlier version
            data["stage"] = Stage.READY if data.pop("ready") else Stage.MAKING
        stage = Stage(data["stage"])
        mounts = mounts_of(data.get("mounts", ()))
        shape = data["shape"]
        shape = ContainerShape(**{**shape, "memory_directories": tuple(shape.get("memory_directories", ()))})
        return ContainerRecord(**{**data, "shape": shape, "exposed": exposed, "stage": stage, "mounts": mounts})
    except (OSError, ValueError, TypeError, KeyError, ShoalError):
        return None
