"""What the migrations make, what an empty database gets at once, and what `tables.py` says are the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from shoal.actors.controller.store import Change
from shoal.cluster.store import rows, schema, tables
from shoal.cluster.store.database import Database, postgresql_database, sqlite_database
from shoal.cluster.store.writer import Writer
from tests.contract.store.conftest import CLUSTER, SQL, StoreLocation
from tests.contract.store.samples import ended, entry, environment, event, living, plain, token

pytestmark = pytest.mark.anyio


@pytest.fixture
def database(location: StoreLocation) -> Iterator[Database]:
    url = location.settings["store"]["url"]
    made = sqlite_database(location.file) if url is None else postgresql_database(url)
    yield made
    made.close()


def migrated(connection: Connection) -> None:
    schema.migrate(connection, "test")


def created(connection: Connection) -> None:
    schema.bring_up_to_date(connection, "test")


@pytest.mark.parametrize("way", [migrated, created])
@SQL
def test_migrations_and_tables_agree(database: Database, way: Any) -> None:
    with database.writes.begin() as connection:
        way(connection)
    with database.writes.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, tables.tables) == []
        assert context.get_current_revision() == tables.REVISION


@SQL
def test_an_empty_database_gets_at_once_what_the_migrations_make(database: Database) -> None:
    descriptions = []
    for way in (migrated, created):
        with database.writes.connect() as connection:
            way(connection)
            descriptions.append(_description(connection))
            connection.rollback()
    assert descriptions[0] == descriptions[1]
    assert set(descriptions[0]["columns"]) == {*tables.tables.tables, "alembic_version"}


def test_migrations_end_in_the_one_revision_that_the_tables_are() -> None:
    script = ScriptDirectory(str(schema.MIGRATIONS))
    assert script.get_heads() == [tables.REVISION]


@SQL
def test_an_older_database_is_migrated(database: Database) -> None:
    """One at no revision yet: Alembic's table is there and empty."""
    with database.writes.begin() as connection:
        tables.version.create(connection)
    with database.writes.begin() as connection:
        schema.bring_up_to_date(connection, "test")
        assert connection.execute(tables.version.select()).all() == [(tables.REVISION,)]
        assert set(tables.tables.tables) <= set(inspect(connection).get_table_names())


@SQL
async def test_a_database_of_the_first_revision_is_migrated_with_all_that_is_in_it(
    location: StoreLocation, database: Database
) -> None:
    with database.writes.begin() as connection:
        schema.migrate(connection, "test", "0001")
        assert not any("idempotency_key" in index["column_names"] for index in _indexes(connection))
    # As the version of that time wrote it: these tables have the same columns still.
    first = Writer(database, epoch=1)
    with database.writes.begin() as connection:
        schema.claim(connection, CLUSTER, "test")
    row = ended("sb-1", name="web", idempotency_key="k")
    await first.write(rows.rows_of(Change([row], [event(7)], [entry()], [environment("main")], [token("tk-1")])))
    await first.close()
    store = location.store()
    try:
        restored = await store.open(CLUSTER, 10)
        assert restored.sandboxes == [await store.sandbox_keyed("k", "main")] == [plain(row)]
        assert (restored.environments, restored.tokens) == ([environment("main")], [token("tk-1")])
        assert restored.last_event == 7
        assert len(await store.events(0, 10)) == len(await store.audit(None, 10)) == 1
        await store.write(Change(sandboxes=[living("sb-2")]))
    finally:
        await store.close()
    with database.writes.connect() as connection:
        assert any("idempotency_key" in index["column_names"] for index in _indexes(connection))
        assert connection.execute(tables.version.select()).all() == [(tables.REVISION,)]


@SQL
def test_a_migration_that_fails_leaves_nothing(database: Database) -> None:
    with database.writes.begin() as connection:
        tables.version.create(connection)
        connection.execute(text("CREATE TABLE tokens (id integer)"))  # stands in the way of the last one
    with pytest.raises(Exception, match="tokens"), database.writes.begin() as connection:
        schema.bring_up_to_date(connection, "test")
    with database.writes.connect() as connection:
        assert sorted(inspect(connection).get_table_names()) == ["alembic_version", "tokens"]


def _indexes(connection: Connection) -> list[Any]:
    return list(inspect(connection).get_indexes("sandboxes"))


def _description(connection: Connection) -> dict[str, Any]:
    found = inspect(connection)
    names = sorted(found.get_table_names())
    described: dict[str, Any] = {
        "columns": {n: [{**c, "type": repr(c["type"])} for c in found.get_columns(n)] for n in names},
        "keys": {n: found.get_pk_constraint(n) for n in names},
        "indexes": {n: sorted(found.get_indexes(n), key=lambda index: str(index["name"])) for n in names},
    }
    if connection.dialect.name == "sqlite":
        master = "SELECT name, replace(replace(sql, char(10), ''), char(9), '') FROM sqlite_master ORDER BY name"
        described["sql"] = [tuple(row) for row in connection.execute(text(master))]
    return described
