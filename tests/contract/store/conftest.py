"""Where a store may lie. Each test runs on all of them, or with `SQL` on the databases."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shoal.actors.controller.store import Store
from shoal.cluster.store import open_store
from tests.postgres import Postgres
from tests.unit.memory_store import Disk, MemoryStore

CLUSTER = "c0ffee00"


@dataclass(frozen=True)
class StoreLocation:
    """Where a test's store lies: in a file, in a database of `postgres`, or in memory (`disk`)."""

    settings: dict[str, Any]
    postgres: Postgres | None = None
    disk: Disk | None = None

    def store(self, **changes: Any) -> Store:
        return open_store({**self.settings, **changes}) if self.disk is None else MemoryStore(self.disk)

    @property
    def file(self) -> Path:
        return Path(self.settings["state_dir"]) / "controller" / f"{CLUSTER}.sqlite"

    def execute(self, statement: str) -> list[Any]:
        """Past the store."""
        if self.postgres is not None:
            return self.postgres.execute(statement, self.settings["store"]["url"].rpartition("/")[2])
        connection = sqlite3.connect(self.file, timeout=10)
        try:
            with connection:
                return connection.execute(statement).fetchall()
        finally:
            connection.close()


def settings_of(state_dir: Path, url: str | None) -> dict[str, Any]:
    return {"state_dir": str(state_dir), "store": {"url": url, "retention": 60.0}}


SQL = pytest.mark.parametrize("location", ["sqlite", "postgresql"], indirect=True)
"""For what only a database can show."""


@pytest.fixture(params=["sqlite", "postgresql", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreLocation]:
    if request.param != "postgresql":
        yield StoreLocation(settings_of(tmp_path, None), disk=Disk() if request.param == "memory" else None)
        return
    server: Postgres = request.getfixturevalue("postgres")
    with server.database() as url:
        yield StoreLocation(settings_of(tmp_path, url), server)


@pytest.fixture
async def store(location: StoreLocation, anyio_backend: str) -> AsyncIterator[Store]:
    """One that is open and empty."""
    opened = location.store()
    await opened.open(CLUSTER, 100)
    yield opened
    await opened.close()
