"""What the containers of a node need of its other parts."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from shoal.actors.node.records import ContainerRecord


class Network(Protocol):
    """What a container needs of the sandbox network."""

    async def prepare(self, key: str) -> None: ...

    async def attach(self, key: str, holder: int | Path, address: str | None = None) -> str: ...

    async def make_namespace(self, pin: Path) -> None: ...

    async def remove_namespace(self, pin: Path) -> None: ...

    async def detach(self, key: str) -> None: ...


class RelayClient(Protocol):
    """What a container needs of the relay."""

    async def add(self, key: str, pid: int = 0, started: int = 0) -> None: ...

    async def remove(self, key: str) -> None: ...


class Mounter(Protocol):
    """What a container needs of the node's mounts."""

    async def attach(self, record: ContainerRecord) -> None: ...
