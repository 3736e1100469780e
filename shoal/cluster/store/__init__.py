"""The store behind `shoal.actors.controller.store`: one SQLite file, or a PostgreSQL database, through SQLAlchemy.

database.py    engines and connections: the URL, timeouts, what a driver's error means
tables.py      the tables, and the revision of the schema that they are
schema.py      an empty or older database becomes today's; taking a store over for a cluster
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
    """The store that `settings` (`Settings.to_dict()`) ask for; nothing is touched, and no wrong URL raises, before its `open`."""
    from pathlib import Path

    from shoal.cluster.store.sql import SqlStore

    return SqlStore(settings["store"]["url"], Path(settings["state_dir"]) / "controller")
