"""The places that a store may lie in: each test runs over both."""

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

CLUSTER = "c0ffee00"


@dataclass(frozen=True)
class Place:
    """Where a test's store lies. `postgres` is its server, where it has one."""

    settings: dict[str, Any]
    postgres: Postgres | None

    def store(self, **changes: Any) -> Store:
        return open_store({**self.settings, **changes})

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


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "sqlite":
        yield Place(settings_of(tmp_path, None), None)
        return
    server: Postgres = request.getfixturevalue("postgres")
    with server.database() as url:
        yield Place(settings_of(tmp_path, url), server)


@pytest.fixture
async def store(place: Place, anyio_backend: str) -> AsyncIterator[Store]:
    """One that is open and empty."""
    opened = place.store()
    await opened.open(CLUSTER, 100)
    yield opened
    await opened.close()
