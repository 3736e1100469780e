"""What is still to be sent, in a SQLite file: an entry and how far its stream has been taken are one transaction.

So a process that is killed anywhere takes each stream up where it left it. Blocks: call in a thread. One process.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from shoal.actors.node.shipping.lines import Entry

EVENTS = "events"
"""In place of a sandbox: how far the cluster's events have been taken, by their ids."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS positions (
    source TEXT NOT NULL, fd INTEGER NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (source, fd)
) WITHOUT ROWID;
"""


class Spool:
    """`most`: bytes of entries beyond which new ones are dropped."""

    def __init__(self, file: Path, most: int) -> None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._most = most
        self._lock = threading.Lock()
        self._base = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        try:
            # What a killed process has written stays; only a machine that loses its power may lose the last entries.
            self._base.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {_SCHEMA}")
            (self.size,) = self._base.execute("SELECT coalesce(sum(length(body)), 0) FROM entries").fetchone()
        except BaseException:
            self._base.close()
            raise

    @property
    def full(self) -> bool:
        """Whether the next entry would be dropped."""
        return bool(self.size >= self._most)

    def add(self, source: str, fd: int, position: int, entries: Sequence[Entry]) -> int:
        """Keeps entries of a stream, which is taken up to `position` then; how many were dropped, as there are too many
        bytes already."""
        with self._lock:
            kept = []
            for entry in entries:
                if self.size + entry.size <= self._most:
                    self.size += entry.size
                    kept.append((entry.body,))
            with closing(self._base.cursor()) as cursor:
                cursor.execute("BEGIN IMMEDIATE")
                try:
                    cursor.executemany("INSERT INTO entries (body) VALUES (?)", kept)
                    cursor.execute("REPLACE INTO positions VALUES (?, ?, ?)", (source, fd, position))
                    cursor.execute("COMMIT")
                except BaseException:
                    cursor.execute("ROLLBACK")
                    self.size -= sum(len(body) for (body,) in kept)
                    raise
            return len(entries) - len(kept)

    def position(self, source: str, fd: int) -> int | None:
        """How far a stream has been taken; None: nothing of it was."""
        with self._lock:
            row = self._base.execute("SELECT position FROM positions WHERE source=? AND fd=?", (source, fd)).fetchone()
        return None if row is None else int(row[0])

    def sources(self) -> set[str]:
        """The sandboxes of which something was taken, or is to be."""
        with self._lock:
            return {name for (name,) in self._base.execute("SELECT source FROM positions") if name != EVENTS}

    def forget(self, sources: Iterable[str]) -> None:
        """Nothing more comes of these sandboxes."""
        with self._lock:
            self._base.executemany("DELETE FROM positions WHERE source=?", [(source,) for source in sources])

    def first(self, most: int, most_bytes: int) -> list[tuple[int, bytes]]:
        """(id, body) of the oldest entries: at most so many, and so many bytes, but at least one."""
        with self._lock:
            rows = self._base.execute("SELECT id, body FROM entries ORDER BY id LIMIT ?", (most,))
            found = list[tuple[int, bytes]]()
            size = 0
            for number, body in rows:
                size += len(body)
                if found and size > most_bytes:
                    break
                found.append((number, body))
            rows.close()
        return found

    def remove(self, sent: Sequence[tuple[int, bytes]]) -> None:
        """These, as `first` gave them, have arrived."""
        with self._lock:
            self._base.execute("DELETE FROM entries WHERE id <= ?", (sent[-1][0],))
            self.size -= sum(len(body) for _, body in sent)

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._base.close()
