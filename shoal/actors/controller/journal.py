"""What must outlive the controller: every sandbox, written before the controller acts on it.

One SQLite file in write-ahead mode beside the cluster's state. All access is on one thread of its own; writes that are waiting when a
commit ends share the next one.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shoal.actors.controller.record import SandboxRecord, from_row, to_row
from shoal.model.errors import Unavailable

_SCHEMA = "CREATE TABLE IF NOT EXISTS sandboxes (id TEXT PRIMARY KEY, created_at REAL NOT NULL, record TEXT NOT NULL)"


class Journal:
    """The sandboxes on disk. Open it before use."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1, "journal")
        self._batch: dict[str, tuple[float, str]] = {}
        self._written: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> list[SandboxRecord]:
        """Opens the file and returns what it holds, oldest first."""
        rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._open)
        return [from_row(json.loads(row)) for row in rows]

    async def put(self, record: SandboxRecord) -> None:
        """Returns once the record is on disk as it is now."""
        self._batch[record.id] = (record.created_at, json.dumps(to_row(record)))
        if self._written is None:
            self._written = asyncio.get_running_loop().create_future()
        written = self._written
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        await asyncio.shield(written)

    async def drop(self, sandbox_ids: Iterable[str]) -> None:
        """Forgets sandboxes."""
        ids = [(sandbox_id,) for sandbox_id in sandbox_ids]
        if ids:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._delete, ids)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    async def _write(self) -> None:
        try:
            while self._written is not None:
                batch, written = self._batch, self._written
                self._batch, self._written = {}, None
                try:
                    await asyncio.get_running_loop().run_in_executor(self._thread, self._insert, batch)
                except sqlite3.Error as error:
                    written.set_exception(
                        Unavailable(f"the controller's journal can't be written: {error}; nothing was done")
                    )
                else:
                    written.set_result(None)
        finally:
            self._writer = None

    def _open(self) -> list[str]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(self._file, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute(_SCHEMA)
        self._connection.commit()
        return [row[0] for row in self._connection.execute("SELECT record FROM sandboxes ORDER BY created_at")]

    def _insert(self, batch: dict[str, tuple[float, str]]) -> None:
        assert self._connection is not None
        with self._connection:
            self._connection.executemany(
                "INSERT OR REPLACE INTO sandboxes VALUES (?, ?, ?)", [(i, at, row) for i, (at, row) in batch.items()]
            )

    def _delete(self, ids: list[tuple[str]]) -> None:
        assert self._connection is not None
        with self._connection:
            self._connection.executemany("DELETE FROM sandboxes WHERE id = ?", ids)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
