"""The registry's file from before this store, which lies where the store's file lies now: its sandboxes may be running."""

from __future__ import annotations

import json

from sqlalchemy import Connection, insert, inspect

from shoal.cluster.store import rows, tables

_OLD, _ASIDE = "sandboxes", "sandboxes_before"


def set_aside(connection: Connection) -> bool:
    """Makes room for today's tables; whether this is such a file."""
    found = inspect(connection)
    if found.get_table_names() != [_OLD] or [c["name"] for c in found.get_columns(_OLD)] != [
        "id",
        "created_at",
        "record",
    ]:
        return False
    connection.exec_driver_sql(f"ALTER TABLE {_OLD} RENAME TO {_ASIDE}")
    return True


def take_over(connection: Connection) -> None:
    """Moves what was set aside into today's tables."""
    old = [json.loads(row) for (row,) in connection.exec_driver_sql(f"SELECT record FROM {_ASIDE}")]
    if old:
        connection.execute(insert(tables.sandboxes), [rows.sandbox_row(row) for row in old])
    connection.exec_driver_sql(f"DROP TABLE {_ASIDE}")
