"""The registry's file from before this store, which lies where the store's file lies now: its sandboxes may be running."""

from __future__ import annotations

import json

from sqlalchemy import Connection, insert, inspect

from shoal.actors.controller.record import from_row, to_row
from shoal.cluster.store import rows, tables
from shoal.model.errors import FailedPrecondition

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
    old = [_converted(*row) for row in connection.exec_driver_sql(f"SELECT id, record FROM {_ASIDE}")]
    if old:
        connection.execute(insert(tables.sandboxes), old)
    connection.exec_driver_sql(f"DROP TABLE {_ASIDE}")


def _converted(sandbox_id: str, record: str) -> rows.Row:
    try:
        return rows.sandbox_row(to_row(from_row(json.loads(record))))  # `from_row` knows what its rows had not yet
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FailedPrecondition(
            f"the store's file holds a sandbox {sandbox_id} that makes no sense ({error!r}); move the file away and start anew: "
            "what runs without a record is removed"
        ) from None
