"""One small file per container, written before the container is made and removed after it is gone.

After a crash the files say which containers were wanted, for whom, and with which address; what the engine has beyond them is rubbish.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shoal.model.ids import CONTAINER
from shoal.model.spec import ContainerShape


@dataclass(frozen=True, slots=True)
class ExposedPort:
    """A port in the container that a port of the node leads to. `listen`: the node's port, 0 while none was given yet."""

    port: int
    private: bool
    listen: int = 0


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """A container of this node. `sandbox_id` is None while it is warm; `ready` once its agent was started and its network stands.

    `pid` is the agent's in the node's pid namespace, `ip` its address on the sandbox network.
    """

    key: str
    shape: ContainerShape
    created_at: float
    sandbox_id: str | None = None
    ready: bool = False
    pid: int = 0
    ip: str | None = None
    exposed: tuple[ExposedPort, ...] = ()

    def but(self, **changes: object) -> ContainerRecord:
        return replace(self, **changes)  # type: ignore[arg-type]


class RecordFiles:
    """The records of one node, below `directory`. Each write is atomic; a torn file can't be."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def load(self) -> dict[str, ContainerRecord]:
        """All records by key. Files that are none of ours, or unreadable, are removed: what they meant is swept as rubbish."""
        return await asyncio.to_thread(self._load)

    async def put(self, record: ContainerRecord) -> None:
        await asyncio.to_thread(self._put, record)

    async def drop(self, key: str) -> None:
        await asyncio.to_thread((self._directory / f"{key}.json").unlink, True)

    def _load(self) -> dict[str, ContainerRecord]:
        self._directory.mkdir(parents=True, exist_ok=True)
        records = {}
        for file in self._directory.iterdir():
            record = _read(file)
            if record is None:
                file.unlink(missing_ok=True)
            else:
                records[record.key] = record
        return records

    def _put(self, record: ContainerRecord) -> None:
        file = self._directory / f"{record.key}.json"
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(record)))
        temporary.replace(file)


def _read(file: Path) -> ContainerRecord | None:
    if file.suffix != ".json" or not CONTAINER.fullmatch(file.stem):
        return None
    try:
        data = json.loads(file.read_text())
        exposed = tuple(ExposedPort(**port) for port in data.get("exposed", ()))
        return ContainerRecord(**{**data, "shape": ContainerShape(**data["shape"]), "exposed": exposed})
    except (OSError, ValueError, TypeError, KeyError):
        return None
