"""How Alembic runs the migrations: in the connection and the transaction that `schema.migrate` hands it.

To write a new one, change `tables.py`, add `versions/r0003_….py` by the example of those there, and raise
`tables.REVISION`; `tests/contract/store/test_schema.py` tells what the two do not agree on.
"""

from __future__ import annotations

from alembic import context

from shoal.cluster.store.tables import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite alters a column by copying its table
)
with context.begin_transaction():
    context.run_migrations()
