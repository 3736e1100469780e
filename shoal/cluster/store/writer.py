"""The only writer of a store: one thread, one connection. Writes that wait while one commits share the next commit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, TypeVar

from sqlalchemy import Connection, Dialect, Table, bindparam, case, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.sql.compiler import SQLCompiler
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from shoal.cluster.store import tables
from shoal.cluster.store.database import FAILURES, Database
from shoal.cluster.store.rows import Row, Rows, merged
from shoal.model.errors import FailedPrecondition, Internal, ShoalError, Unavailable, error_from_dict

log = logging.getLogger("shoal.store")

_T = TypeVar("_T")

_Waiting = tuple[Rows, asyncio.Future[None]]

_ATTEMPTS = 2
"""A connection may have died unnoticed, so a new one is worth a try."""

_MANY = 4
_GATHER_S = 0.008
"""So long after a commit of many writes began, the next one begins. A commit costs 0.6 ms of CPU, whatever it holds,
which at 300 creates a second was a third of all. Where fewer come together, none waits."""

DOUBT_S = 30.0
_DOUBT_PAUSE_S = 0.2


class Writer:
    """Writes for the controller of one epoch, which `schema.claim` returned."""

    def __init__(self, database: Database, epoch: int) -> None:
        self._database = database
        self._epoch = epoch
        self._thread = ThreadPoolExecutor(1, "store-writer")
        self._waiting: list[_Waiting] = []
        self._next_at = 0.0  # by the loop's clock
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    def write(self, rows: Rows) -> asyncio.Future[None]:
        """Done once all of `rows` is committed. Who cancels it does not undo the shared commit."""
        if self._closed:
            raise FailedPrecondition("the store is closed; open it again")
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()
        self._waiting.append((rows, written))
        if self._idle.is_set():
            self._idle.clear()
            self._commit_soon(loop)
        return written

    async def run(self, body: Callable[[Connection], _T]) -> _T:
        """Runs `body` in a transaction of its own, between the writes."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, body)

    async def close(self) -> None:
        """Closes after writing what waits."""
        self._closed = True
        await self._idle.wait()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    def _commit_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Commits all that is written in this turn of the loop, or until it is time."""
        if loop.time() < self._next_at:
            loop.call_at(self._next_at, self._commit, loop)
        else:
            loop.call_soon(self._commit, loop)

    def _commit(self, loop: asyncio.AbstractEventLoop) -> None:
        """Commits what waits, then what has come meanwhile. By callbacks: there are hundreds of commits each second."""
        batch, self._waiting = self._waiting, []
        self._next_at = loop.time() + _GATHER_S if len(batch) >= _MANY else 0.0
        outcomes = loop.run_in_executor(self._thread, self._write, [rows for rows, _ in batch])
        outcomes.add_done_callback(partial(self._committed, loop, batch))

    def _committed(
        self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting], done: asyncio.Future[list[ShoalError | None]]
    ) -> None:
        failed = None if done.cancelled() else done.exception()
        if failed is not None:
            log.error("the store's writer failed", exc_info=failed)
        if done.cancelled() or failed is not None:
            message = "the store's writer failed; the controller's log says why"
            outcomes: list[ShoalError | None] = [Internal(message) for _ in batch]
        else:
            outcomes = done.result()
        for (_, written), outcome in zip(batch, outcomes, strict=True):
            if written.cancelled():
                continue
            if outcome is None:
                written.set_result(None)
            else:
                written.set_exception(outcome)
                written.exception()  # its caller may be gone
        if self._waiting:
            self._commit_soon(loop)
        else:
            self._idle.set()

    # -- on the thread --------------------------------------------------------------------------------

    def _write(self, batch: list[Rows]) -> list[ShoalError | None]:
        """The outcome of each write of `batch`."""
        try:
            self._transact(lambda connection: _apply(connection, merged(batch)), max(rows.last_event for rows in batch))
        except Internal as error:
            if len(batch) == 1:
                return [error]
            # A write that the database refuses fails alone.
            return [outcome for rows in batch for outcome in self._write([rows])]
        except ShoalError as error:
            return [error_from_dict(error.to_dict()) for _ in batch]  # a copy for each caller, since each raises it
        return [None] * len(batch)

    def _transact(self, body: Callable[[Connection], _T], last_event: int = 0) -> _T:
        """One transaction, which happens exactly once or not at all."""
        for attempt in range(1, _ATTEMPTS + 1):
            number = None
            try:
                with self._database.writes.connect() as connection:
                    fenced = self._fence(connection, last_event)
                    result = body(connection)
                    number = fenced  # after this, an error may come after the commit
                    connection.commit()
            except FAILURES as error:
                if number is not None and not self._database.sqlite and self._took_place(number):
                    return result
                lost = isinstance(error, DBAPIError) and error.connection_invalidated
                if not lost or attempt == _ATTEMPTS:
                    raise self._database.failure(error) from None
            else:
                return result
        raise AssertionError("unreachable")

    def _fence(self, connection: Connection, last_event: int) -> int:
        """Locks `meta`, so that other controllers wait until the transaction ends; returns its number.

        First in each.
        """
        mine = {"mine": self._epoch, "latest": last_event}
        number: int | None = connection.execute(_FENCE, mine).scalar()
        if number is None:
            raise self._overtaken()
        return number

    def _took_place(self, number: int) -> bool:
        """Whether a commit whose answer was lost took place.

        While the server still works on it, its lock makes this wait.
        """
        again = Retrying(
            retry=retry_if_exception_type(SQLAlchemyError),
            wait=wait_fixed(_DOUBT_PAUSE_S),
            stop=stop_after_delay(DOUBT_S),
            reraise=True,
        )
        try:
            epoch, writes = again(self._counts)
        except SQLAlchemyError as error:
            failure = self._database.failure(error).message.removesuffix("; nothing was done")
            raise Unavailable(
                f"{failure}; it is not known whether the last write took place", outcome="unknown"
            ) from None
        if epoch != self._epoch:
            raise self._overtaken()
        return writes >= number

    def _counts(self) -> tuple[int, int]:
        """The epoch of the store, and the number of writes in it."""
        look = select(tables.meta.c.epoch, tables.meta.c.writes).with_for_update()
        with self._database.writes.connect() as connection:
            epoch, writes = connection.execute(look).one()
        return epoch, writes

    def _overtaken(self) -> FailedPrecondition:
        return FailedPrecondition(
            f"another controller has taken over the store {self._database.name}; this one must stop",
            state="overtaken",
        )


def _apply(connection: Connection, rows: Rows) -> None:
    _put(connection, tables.sandboxes, list(rows.sandboxes.values()))
    _put(connection, tables.events, list(rows.events.values()))
    for name, changed in rows.others.items():
        table = tables.tables.tables[name]
        _put(connection, table, [row for row in changed.values() if row is not None])
        removed = [key for key, row in changed.items() if row is None]
        if removed:
            (key_column,) = table.primary_key.columns
            connection.execute(delete(table).where(key_column.in_(removed)))
    if rows.audit:
        _put(connection, tables.audit, rows.audit)


def _put(connection: Connection, table: Table, rows: list[Row]) -> None:
    """Inserts or replaces rows. The driver gets the statement's text: SQLAlchemy would look at each value of each row,
    and there are more than a thousand rows each second."""
    if rows:
        statement = _compiled(connection.dialect, table)
        names = statement.positiontup
        connection.exec_driver_sql(str(statement), rows if names is None else list(map(itemgetter(*names), rows)))


@lru_cache(maxsize=64)
def _compiled(dialect: Dialect, table: Table) -> SQLCompiler:
    columns = [column.name for column in table.columns if column is not tables.audit.c.id]  # the database's to give
    compiled = _PUT[dialect.name, table.name].compile(dialect=dialect, column_keys=columns)
    assert isinstance(compiled, SQLCompiler)
    return compiled


def _put_statement(dialect: Any, table: Table) -> Any:
    statement = dialect.insert(table)
    if table is tables.audit:
        return statement
    fixed = {*(each.name for each in table.primary_key), *(tables.FIXED if table is tables.sandboxes else ())}
    rest = {each.name: statement.excluded[each.name] for each in table.columns if each.name not in fixed}
    return statement.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=rest)


_LATEST = bindparam("latest", type_=tables.meta.c.last_event.type)
_FENCE = (
    update(tables.meta)
    .where(tables.meta.c.epoch == bindparam("mine"))
    .values(
        writes=tables.meta.c.writes + 1,
        last_event=case((tables.meta.c.last_event < _LATEST, _LATEST), else_=tables.meta.c.last_event),
    )
    .returning(tables.meta.c.writes)
)
"""Made once: making a statement takes longer than executing it."""

_PUT: dict[tuple[str, str], Any] = {
    (name, table.name): _put_statement(dialect, table)
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql))
    for table in tables.tables.tables.values()
}
"""What inserts or replaces a row, by the kind of database and the table."""
