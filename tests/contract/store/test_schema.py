"""What the migrations make, what an empty database gets at once, and what `tables.py` says are the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from shoal.cluster.store import schema, tables
from shoal.cluster.store.database import Database, postgresql_database, sqlite_database
from tests.contract.store.conftest import Place


@pytest.fixture
def database(place: Place) -> Iterator[Database]:
    url = place.settings["store"]["url"]
    made = sqlite_database(place.file) if url is None else postgresql_database(url)
    yield made
    made.close()


def migrated(connection: Connection) -> None:
    schema.migrate(connection, "test")


def created(connection: Connection) -> None:
    schema.bring_up_to_date(connection, "test")


@pytest.mark.parametrize("way", [migrated, created])
def test_migrations_and_tables_agree(database: Database, way: Any) -> None:
    with database.writes.begin() as connection:
        way(connection)
    with database.writes.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, tables.tables) == []
        assert context.get_current_revision() == tables.REVISION


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


def test_an_older_database_is_migrated(database: Database) -> None:
    """One at no revision yet: Alembic's table is there and empty."""
    with database.writes.begin() as connection:
        tables.version.create(connection)
    with database.writes.begin() as connection:
        schema.bring_up_to_date(connection, "test")
        assert connection.execute(tables.version.select()).all() == [(tables.REVISION,)]
        assert set(tables.tables.tables) <= set(inspect(connection).get_table_names())


def test_a_migration_that_fails_leaves_nothing(database: Database) -> None:
    with database.writes.begin() as connection:
        tables.version.create(connection)
        connection.execute(text("CREATE TABLE tokens (id integer)"))  # stands in the way of the last one
    with pytest.raises(Exception, match="tokens"), database.writes.begin() as connection:
        schema.bring_up_to_date(connection, "test")
    with database.writes.connect() as connection:
        assert sorted(inspect(connection).get_table_names()) == ["alembic_version", "tokens"]


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
