"""Migrating a database, and claiming it for a cluster's controller, all in the caller's transaction."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, insert, inspect, select, update

from shoal.cluster.store import tables
from shoal.model.errors import FailedPrecondition

MIGRATIONS = Path(__file__).parent / "migrations"

_ADVISORY_LOCK = 0x73686F616C  # "shoal"; of two controllers that open an empty database, one creates the tables


def bring_up_to_date(connection: Connection, name: str) -> None:
    """Creates or migrates the tables; `FailedPrecondition` if `name` is not a store, or one of a newer version."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
    found = set(inspect(connection).get_table_names())
    if tables.version.name not in found:
        _create(connection, found, name)
        return
    revision = connection.execute(select(tables.version.c.version_num)).scalar()
    if revision != tables.REVISION:
        migrate(connection, name)


def migrate(connection: Connection, name: str, revision: str = "head") -> None:
    """Migrates the database to `revision` with Alembic, which is imported only here."""
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # a migration may take any time
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise FailedPrecondition(
            f"the store {name} was written by a newer version of Shoal, or by another program ({error}); "
            "install that version, or use another database",
            state="newer",
            field="store.url",
        ) from None


def claim(connection: Connection, cluster: str, name: str) -> int:
    """Claims the store for the cluster, and makes this controller its only writer; returns its epoch."""
    owner = connection.execute(select(tables.meta.c.cluster)).scalar()
    if owner is None:
        connection.execute(insert(tables.meta).values(id=1, cluster=cluster, epoch=1, writes=0, last_event=0))
        return 1
    if owner != cluster:
        raise FailedPrecondition(
            f"the store {name} belongs to cluster {owner}, not to {cluster}; give each cluster a database of its own "
            "(`store.url`), or empty this one if that cluster is no more",
            state="claimed",
            field="store.url",
        )
    raised = update(tables.meta).values(epoch=tables.meta.c.epoch + 1).returning(tables.meta.c.epoch)
    epoch: int = connection.execute(raised).scalar_one()
    return epoch


def _create(connection: Connection, found: set[str], name: str) -> None:
    """Makes today's tables at once, without the migrations; a test checks that both give the same schema."""
    foreign = sorted(found & set(tables.tables.tables))
    if foreign:
        raise FailedPrecondition(
            f"the database {name} holds tables of another program ({', '.join(foreign)}); "
            "give the store a database of its own",
            state="foreign",
            field="store.url",
        )
    tables.tables.create_all(connection, checkfirst=False)
    tables.version.create(connection)
    connection.execute(insert(tables.version).values(version_num=tables.REVISION))
