"""Connections to SQLite and PostgreSQL: the URL, the timeouts, and the translation of a driver's errors."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import URL, Engine, ExceptionContext, event
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError, ProgrammingError, SQLAlchemyError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from shoal.model.errors import FailedPrecondition, Internal, InvalidRequest, ShoalError, Unavailable

BUSY_S = 5.0
"""Seconds that a SQLite writer waits for another, such as an overtaken controller's last write."""

_WAL_KEPT = 16 << 20
"""Bytes that SQLite's WAL file keeps on disk when it is empty."""

_POSTGRESQL = {
    "application_name": "shoal",
    "connect_timeout": 5,  # s
    "keepalives_idle": 10,  # s
    "keepalives_interval": 5,  # s
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # ms without an acknowledgement, until the server counts as gone
    "target_session_attrs": "read-write",  # of several hosts, the present primary
}
_NOT_THIS_ONE = ("25006", "26000")
"""SQLSTATEs of a server that is now read-only, and of one that does not know our session. Both mean that another server
answers at the same address; a new connection may work."""

_SESSION = (
    "SET lock_timeout = '10s'",
    "SET statement_timeout = '30s'",
    "SET idle_in_transaction_session_timeout = '30s'",  # releases the locks of a writer that vanished
)
_WRONG_DATA = (DataError, IntegrityError, ProgrammingError)
FAILURES = (SQLAlchemyError, OverflowError, UnicodeError, TypeError)
"""What a statement may raise: drivers do not wrap errors about a value that does not fit."""

_SENSELESS = re.compile(r"(connection is bad: )?(invalid|bad value for) ")
"""How libpq's message begins if it refuses the options before connecting."""

_FORM = "postgresql://user:password@host/database"


class Database:
    """A store's database. `writes` and `reads` have one connection each, for one thread each."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self._secrets = [text for text in (url.password, _first(url.query.get("password"))) if text]
        self.writes = self._engine(writes=True)
        self.reads = self._engine(writes=False)

    @property
    def sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @property
    def name(self) -> str:
        """The location, without the password."""
        return str(self.url.database) if self.sqlite else f"{self.url.host or 'localhost'}/{self.url.database or ''}"

    def failure(self, error: Exception) -> ShoalError:
        """The caller's error for a transaction that was not committed. It holds no password."""
        cause = getattr(error, "orig", None) or error
        text = self._masked(" ".join(str(cause).split())[:500])
        if type(cause) is sqlite3.DatabaseError:  # exactly this class: not a database, or a damaged one
            return FailedPrecondition(f"the store {self.name} is damaged: {text}; restore a backup")
        if str(getattr(cause, "sqlstate", "")).startswith("42"):  # PostgreSQL: no such table, no right to it
            return FailedPrecondition(
                f"the store {self.name} refuses: {text}; its tables must be Shoal's only, and owned by its user"
            )
        if not self.sqlite and getattr(cause, "sqlstate", None) is None and _SENSELESS.match(text):
            return InvalidRequest(
                f"store.url: {text.removeprefix('connection is bad: ')}; write {_FORM}", field="store.url"
            )
        if isinstance(error, _WRONG_DATA) or not isinstance(error, SQLAlchemyError):
            return Internal(f"the store {self.name} cannot hold this value: {text}")
        return Unavailable(f"the store {self.name} does not answer: {text}; nothing was done")

    def close(self) -> None:
        self.writes.dispose()
        self.reads.dispose()

    def _engine(self, *, writes: bool) -> Engine:
        bounds = {} if self.sqlite else {k: v for k, v in _POSTGRESQL.items() if k not in self.url.query}
        engine = sqlalchemy.create_engine(
            self.url,
            # One connection; SQLite's may be made on one thread and closed on another.
            poolclass=sqlalchemy.QueuePool,
            pool_size=1,
            max_overflow=0,
            connect_args={"timeout": BUSY_S, "check_same_thread": False} if self.sqlite else bounds,
            hide_parameters=True,
            **({} if self.sqlite or writes else {"isolation_level": "AUTOCOMMIT"}),  # a read is one statement
        )
        if self.sqlite:
            event.listen(engine, "connect", _set_up_sqlite)
            event.listen(engine, "begin", _begin_writing if writes else _begin_reading)
        else:
            event.listen(engine, "connect", _set_up_postgresql)
            event.listen(engine, "handle_error", _look_elsewhere)
        return engine

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def sqlite_database(file: Path) -> Database:
    """The database in this file, readable by its owner only; created if missing."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        file.chmod(0o600)  # SQLite gives its side files the same mode
    except OSError as error:
        raise FailedPrecondition(
            f"the store {file} cannot be written: {error.strerror}; it must belong to the user of the cluster",
            state="unwritable",
            field="state_dir",
        ) from None
    return Database(URL.create("sqlite+pysqlite", database=str(file)))


def postgresql_database(url: str) -> Database:
    """The database at a `postgresql://…` URL; `InvalidRequest` if it is malformed. Does not connect yet."""
    try:
        parsed = sqlalchemy.make_url(url)
    except (ArgumentError, ValueError):  # their messages may hold the password
        parsed = None
    if (
        parsed is None
        or not parsed.database
        or parsed.drivername not in ("postgresql", "postgres", "postgresql+psycopg")
    ):
        raise InvalidRequest(
            f"store.url: not a PostgreSQL URL; write {_FORM}, with special characters of the password percent-encoded",
            field="store.url",
        )
    return Database(parsed.set(drivername="postgresql+psycopg"))


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin by `_begin_…`, not by the driver's guess
    cursor = connection.cursor()
    _keep_a_wal(cursor)
    cursor.execute("PRAGMA synchronous=FULL")  # with WAL, anything less loses commits in a power cut
    cursor.execute("PRAGMA secure_delete=ON")  # ended sandboxes' variables must not stay in the file
    cursor.execute(f"PRAGMA journal_size_limit={_WAL_KEPT}")
    cursor.close()


def _keep_a_wal(cursor: Any) -> None:
    """Retries by itself: when several open a new file at once SQLite refuses all but one, whatever its busy timeout."""
    is_busy = retry_if_exception(lambda error: getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY)
    again = Retrying(retry=is_busy, wait=wait_fixed(0.01), stop=stop_after_delay(BUSY_S), reraise=True)
    again(cursor.execute, "PRAGMA journal_mode=WAL")


def _begin_writing(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # two writers wait for each other here, not halfway


def _begin_reading(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _set_up_postgresql(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        for statement in _SESSION:
            cursor.execute(statement)
    connection.commit()  # or the first rollback would undo the settings


def _look_elsewhere(context: ExceptionContext) -> None:
    if getattr(context.original_exception, "sqlstate", None) in _NOT_THIS_ONE:
        context.is_disconnect = True  # closes the connection; the caller tries once on a new one


def _first(value: str | tuple[str, ...] | None) -> str | None:
    return value[0] if isinstance(value, tuple) else value
