"""The store contract over SQLAlchemy: one thread writes, another reads, and neither blocks the caller's loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Delete, Select, Table, delete, or_, select, tuple_
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from shoal.actors.controller.store import Change, HourOfUse, Restored, Store
from shoal.cluster.store import rows, schema, tables, usage
from shoal.cluster.store.database import FAILURES, Database, postgresql_database, sqlite_database
from shoal.cluster.store.writer import Writer
from shoal.model.access import AuditEntry, SandboxEvent
from shoal.model.errors import FailedPrecondition
from shoal.model.info import PageCursor
from shoal.model.usage import UsageRow

_T = TypeVar("_T")

_EXPIRED_AT_ONCE = 200
"""Rows deleted per transaction, which bounds the wait of writes in between."""

_RESTORED_AT_ONCE = 100
RESTORED_BYTES = 64 << 20
"""Bytes of ended sandboxes read when a store is opened; at most one page more."""


class SqlStore(Store):
    """The store at `url`; without one, in `<directory>/<cluster>.sqlite`."""

    def __init__(self, url: str | None, directory: Path) -> None:
        self._url = url
        self._directory = directory
        self._reader = _reader()
        self._database: Database | None = None
        self._writer: Writer | None = None

    async def open(self, cluster: str, history: int) -> Restored:
        await self._release()
        database = await self._on_reader(self._connect, cluster)
        try:
            epoch = await self._on_reader(_take_over, database, cluster)
            restored: Restored = await self._on_reader(
                _read, database, lambda connection: _restore(connection, history)
            )
        except BaseException:
            database.close()
            raise
        self._database, self._writer = database, Writer(database, epoch)
        return restored

    def write(self, change: Change) -> asyncio.Future[None]:
        _, writer = self._opened()
        return writer.write(rows.rows_of(change))

    async def sandbox(self, sandbox_id: str) -> dict[str, Any] | None:
        query = select(tables.sandboxes.c.row).where(tables.sandboxes.c.id == rows.text(sandbox_id))
        return await self._one(query)

    async def sandbox_named(self, name: str, environment: str) -> dict[str, Any] | None:
        return await self._last(tables.sandboxes.c.name == rows.text(name), environment)

    async def sandbox_keyed(self, key: str, environment: str) -> dict[str, Any] | None:
        return await self._last(tables.sandboxes.c.idempotency_key == rows.text(key), environment)

    async def ended(self, environment: str | None, before: PageCursor | None, limit: int) -> list[dict[str, Any]]:
        query = _newest_ended(limit, before)
        if environment is not None:
            query = query.where(tables.sandboxes.c.environment == rows.text(environment))
        return await self._all(query, _sandbox)

    async def events(
        self, after: int, limit: int, *, environment: str | None = None, sandbox_id: str | None = None
    ) -> list[SandboxEvent]:
        c = tables.events.c
        query = select(tables.events).where(c.id > after).order_by(c.id).limit(limit)
        if environment is not None:
            query = query.where(c.environment == rows.text(environment))
        if sandbox_id is not None:
            query = query.where(c.sandbox_id == rows.text(sandbox_id))
        return await self._all(query, rows.event_of)

    async def audit(self, before: int | None, limit: int, *, environment: str | None = None) -> list[AuditEntry]:
        c = tables.audit.c
        query = select(tables.audit).order_by(c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(c.id < before)
        if environment is not None:
            query = query.where(c.environment == rows.text(environment))
        return await self._all(query, rows.audit_of)

    async def was_deleted(self, environment: str) -> bool:
        c = tables.audit.c
        # Its deletion is its last event: once that is forgotten, so are all others.
        query = select(c.id).where(
            c.environment == rows.text(environment), c.action == "environment.delete", c.outcome == "ok"
        )
        return bool(await self._all(query.order_by(c.id.desc()).limit(1), tuple))

    async def hours_of_use(self, first: int) -> list[HourOfUse]:
        return await self._all(select(tables.usage).where(tables.usage.c.hour >= first), usage.use_of)

    async def usage(
        self, by: str, tag: str | None, first: int, last: int, environment: str | None, limit: int
    ) -> list[UsageRow]:
        query = usage.sums(by, tag, first, last, environment, limit)
        return await self._all(query, partial(usage.row_told, by))

    async def expire_usage(self, before: int) -> int:
        _, writer = self._opened()
        removal = delete(tables.usage).where(tables.usage.c.hour < before)
        return await writer.run(partial(_carry_out, removal))

    async def expire(self, before: float) -> int:
        _, writer = self._opened()
        token = tables.tokens.c
        forgotten = 0
        for removal in (
            _removal(tables.sandboxes, tables.sandboxes.c.ended_at < before),
            _removal(tables.events, tables.events.c.at < before),
            _removal(tables.audit, tables.audit.c.at < before),
            _removal(tables.tokens, or_(token.revoked_at < before, token.expires_at < before)),
        ):
            count = _EXPIRED_AT_ONCE
            while count == _EXPIRED_AT_ONCE:
                count = await writer.run(partial(_carry_out, removal))
                forgotten += count
        return forgotten

    async def close(self) -> None:
        await self._release()
        self._reader.shutdown(wait=False)
        self._reader = _reader()

    async def _release(self) -> None:
        database, writer, self._database, self._writer = self._database, self._writer, None, None
        if writer is not None:
            await writer.close()
        if database is not None:
            await self._on_reader(database.close)

    def _connect(self, cluster: str) -> Database:
        if self._url is not None:
            return postgresql_database(self._url)
        return sqlite_database(self._directory / f"{cluster}.sqlite")

    def _opened(self) -> tuple[Database, Writer]:
        if self._database is None or self._writer is None:
            raise FailedPrecondition("the store is not open; open it first")
        return self._database, self._writer

    async def _last(self, which: ColumnElement[bool], environment: str) -> dict[str, Any] | None:
        c = tables.sandboxes.c
        query = select(c.row).where(c.environment == rows.text(environment), which)
        return await self._one(query.order_by(c.created_at.desc(), c.id.desc()).limit(1))

    async def _one(self, query: Select[Any]) -> dict[str, Any] | None:
        found = await self._all(query, _sandbox)
        return found[0] if found else None

    async def _all(self, query: Select[Any], made_of: Callable[[Any], _T]) -> list[_T]:
        """Converts the rows on the reader's thread too: JSON takes longer than the query."""
        database, _ = self._opened()
        return await self._on_reader(_read, database, lambda c: [made_of(row) for row in c.execute(query)])

    async def _on_reader(self, body: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, body, *arguments)


def _reader() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "store-reader")  # starts its thread on the first read


def _take_over(database: Database, cluster: str) -> int:
    try:
        with database.writes.begin() as connection:
            schema.bring_up_to_date(connection, database.name)
            return schema.claim(connection, cluster, database.name)
    except SQLAlchemyError as error:
        raise database.failure(error) from None


def _read(database: Database, body: Callable[[Connection], _T]) -> _T:
    """Runs `body`, and once more if the connection had died unnoticed."""
    for last in (False, True):
        try:
            with database.reads.connect() as connection:
                return body(connection)
        except FAILURES as error:
            if last or not (isinstance(error, DBAPIError) and error.connection_invalidated):
                raise database.failure(error) from None
    raise AssertionError("unreachable")


def _restore(connection: Connection, history: int) -> Restored:
    c = tables.sandboxes.c
    living = connection.execute(select(c.created_at, c.id, c.row).where(c.ended_at.is_(None)))
    ended, complete = _newest(connection, history)
    found = sorted((row.created_at, row.id, row.row) for row in (*living, *ended))
    epoch, last_event = connection.execute(select(tables.meta.c.epoch, tables.meta.c.last_event)).one()
    return Restored(
        sandboxes=[json.loads(row) for _, _, row in found],
        environments=[rows.environment_of(row) for row in connection.execute(select(tables.environments))],
        tokens=[rows.token_of(row) for row in connection.execute(select(tables.tokens))],
        cordons=[rows.cordon_of(row) for row in connection.execute(select(tables.cordons))],
        pools=[rows.pool_of(row) for row in connection.execute(select(tables.pools))],
        images=[rows.image_of(row) for row in connection.execute(select(tables.images))],
        secrets=[rows.secret_of(row) for row in connection.execute(select(tables.secrets))],
        volumes=[rows.volume_of(row) for row in connection.execute(select(tables.volumes))],
        last_event=last_event,
        complete=complete,
        epoch=epoch,
    )


def _newest(connection: Connection, history: int) -> tuple[list[Any], bool]:
    """The newest ended sandboxes, page by page, up to a number and a size; and whether these are all."""
    found: list[Any] = []
    size = 0
    before: PageCursor | None = None
    while (limit := min(history - len(found), _RESTORED_AT_ONCE)) > 0 and size < RESTORED_BYTES:
        page = connection.execute(_newest_ended(limit, before)).all()
        found += page
        if len(page) < limit:
            return found, True
        size += sum(len(row.row) for row in page)
        before = page[-1].created_at, page[-1].id
    return found, False


def _newest_ended(limit: int, before: PageCursor | None) -> Select[Any]:
    c = tables.sandboxes.c
    query = select(c.created_at, c.id, c.row).where(c.ended_at.is_not(None))
    if before is not None:
        at, sandbox_id = before
        query = query.where(tuple_(c.created_at, c.id) < (at, rows.text(sandbox_id)))
    return query.order_by(c.created_at.desc(), c.id.desc()).limit(limit)


def _sandbox(row: Any) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(row.row)
    return loaded


def _carry_out(removal: Delete, connection: Connection) -> int:
    return connection.execute(removal).rowcount


def _removal(table: Table, stale: ColumnElement[bool]) -> Delete:
    """Deletes some of the expired rows."""
    some = select(table.c.id).where(stale).limit(_EXPIRED_AT_ONCE)
    return delete(table).where(table.c.id.in_(some))
