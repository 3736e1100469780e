"""Where the metadata of volumes is.

With PostgreSQL as the cluster's store: a schema for each volume, in the same database. Every machine reaches it. Its
transactions do not wait for the disk (`volumes.synchronous_commit`): they are there in their order after a crash, but
for those of less than the last second, and `sync` waits for all of them. Those that hand out numbers wait (`guard`).

Without: a SQLite file for each volume in the state directory. Two volumes never wait for each other's writes, and none
can be mounted on another machine: SQLite locks by shared memory of one machine.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.engine import URL

from shoal.cluster.store.database import FAILURES, postgresql_database
from shoal.model.ids import VOLUME
from shoal.model.private_directory import make_private_directory
from shoal.model.settings import Settings

_GUARD = (
    """CREATE OR REPLACE FUNCTION "{schema}".wait_for_disk() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM set_config('synchronous_commit', 'on', true); RETURN NEW; END $$""",
    'DROP TRIGGER IF EXISTS wait_for_disk ON "{schema}".jfs_counter',
    """CREATE TRIGGER wait_for_disk BEFORE UPDATE ON "{schema}".jfs_counter FOR EACH ROW
    WHEN (NEW.name IN ('nextInode', 'nextChunk', 'nextSession')) EXECUTE FUNCTION "{schema}".wait_for_disk()""",
)
"""Has a transaction that hands out numbers wait for the disk. `jfs_counter` is where JuiceFS has them, as its page on
internals says."""


class MetadataAddress(NamedTuple):
    """Where the metadata of one volume is. `password` is not in `url`."""

    url: str
    password: str | None


class Metadata(ABC):
    """All methods block, and are idempotent. `only_on_head`: no other machine reaches it."""

    only_on_head: bool

    @abstractmethod
    def make(self, volume_id: str) -> None:
        """Makes room for the metadata of a volume."""

    @abstractmethod
    def address(self, volume_id: str) -> MetadataAddress:
        """Where it is."""

    @abstractmethod
    def guard(self, volume_id: str) -> None:
        """Once a volume is formatted: sees to it that no crash of the database has numbers of files and blocks handed
        out twice. A mount takes a thousand of each at a time and goes on to use them after the crash, so a second one
        would write other data under the names of the first one's objects."""

    @abstractmethod
    def sync(self) -> None:
        """Returns once all that was written is on disk."""

    @abstractmethod
    def remove(self, volume_id: str) -> None:
        """Removes it."""


def metadata_for(settings: Settings) -> Metadata:
    """The one for these settings."""
    if settings.store.url is not None:
        return PostgresMetadata(settings.store.url, synchronous=settings.volumes.synchronous_commit)
    return SqliteMetadata(settings.state_dir / "volumes")


class SqliteMetadata(Metadata):
    """A file each, in `directory`."""

    only_on_head = True

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def make(self, volume_id: str) -> None:
        make_private_directory(self._directory)

    def address(self, volume_id: str) -> MetadataAddress:
        return MetadataAddress(f"sqlite3://{self._file(volume_id)}", None)

    def guard(self, volume_id: str) -> None:
        """Each transaction waits for itself."""

    def sync(self) -> None:
        """The same."""

    def remove(self, volume_id: str) -> None:
        file = self._file(volume_id)
        for each in (file, *(file.with_name(file.name + end) for end in ("-wal", "-shm", "-journal"))):
            each.unlink(missing_ok=True)

    def _file(self, volume_id: str) -> Path:
        return self._directory / f"{_checked(volume_id)}.sqlite"


class PostgresMetadata(Metadata):
    """A schema each, in the database at `url`."""

    only_on_head = False

    def __init__(self, url: str, *, synchronous: bool = False) -> None:
        self._url = url
        self._synchronous = synchronous

    def make(self, volume_id: str) -> None:
        self._run(f'CREATE SCHEMA IF NOT EXISTS "{_schema(volume_id)}"')

    def address(self, volume_id: str) -> MetadataAddress:
        url = postgresql_database(self._url).url
        password = url.password or _first(url.query.get("password"))
        plain = URL.create(
            "postgres",
            url.username,
            None,
            url.host,
            url.port,
            url.database,
            {name: value for name, value in url.query.items() if name.startswith("ssl")}
            | {"search_path": _schema(volume_id)}
            | ({} if self._synchronous else {"synchronous_commit": "off"}),
        )
        return MetadataAddress(plain.render_as_string(hide_password=False), password)

    def guard(self, volume_id: str) -> None:
        if not self._synchronous:
            self._run(*(each.format(schema=_schema(volume_id)) for each in _GUARD))

    def sync(self) -> None:
        # A transaction that waits for its own record waits for all before it, whoever wrote them.
        self._run("SELECT pg_logical_emit_message(true, 'shoal', '')")

    def remove(self, volume_id: str) -> None:
        self._run(f'DROP SCHEMA IF EXISTS "{_schema(volume_id)}" CASCADE')

    def _run(self, *statements: str) -> None:
        database = postgresql_database(self._url)
        try:
            with database.writes.begin() as connection:
                for statement in statements:
                    connection.exec_driver_sql(statement)
        except FAILURES as error:
            raise database.failure(error) from None
        finally:
            database.close()


def _schema(volume_id: str) -> str:
    return "shoal_" + _checked(volume_id).replace("-", "_")


def _checked(volume_id: str) -> str:
    """It becomes part of paths and statements."""
    if not re.fullmatch(VOLUME, volume_id):
        raise ValueError(f"{volume_id!r:.80} is no id of a volume")
    return volume_id


def _first(value: str | tuple[str, ...] | None) -> str | None:
    return value[0] if isinstance(value, tuple) else value
