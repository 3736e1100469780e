"""The implementation of `shoal.actors.controller.store`: a SQLite file or a PostgreSQL database, by SQLAlchemy.

database.py    engines and connections: the URL, timeouts, what a driver's error means
tables.py      the tables, and the revision of the schema that they are
schema.py      creates, migrates and claims the database
rows.py        what is written, as rows of the tables
writer.py      the one writer: fencing, writes that share a commit, commits whose answer was lost
sql.py         the contract over all of it
migrations/    Alembic's; `docs/operating.md` says how an operator meets them: not at all
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.actors.controller.store import Store


def open_store(settings: dict[str, Any]) -> Store:
    """The store for `settings` (`Settings.to_dict()`). Nothing is opened or checked before its `open`."""
    from pathlib import Path

    from shoal.cluster.store.sql import SqlStore

    return SqlStore(settings["store"]["url"], Path(settings["state_dir"]) / "controller")
