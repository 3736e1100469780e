"""The tables. What queries need has a column of its own; the rest of a sandbox is JSON that only the controller reads.

A change here needs a migration and a new `REVISION`: a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Index, Integer, MetaData, PrimaryKeyConstraint, String, Table, Text

REVISION = "0008"
"""The newest migration, whose result is `tables` below."""

_BIG = BigInteger().with_variant(Integer(), "sqlite")  # SQLite's INTEGER has 64 bits; as a primary key it is the rowid

tables = MetaData(
    naming_convention={"pk": "pk_%(table_name)s", "ix": "ix_%(table_name)s_%(column_0_N_name)s"},
)

meta = Table(
    "meta",
    tables,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("cluster", Text, nullable=False),
    Column("epoch", _BIG, nullable=False),  # of the controller that may write: the last that opened the store
    Column(
        "writes", _BIG, nullable=False
    ),  # rises with each commit; shows whether a commit took place whose answer was lost
    Column("last_event", _BIG, nullable=False),  # ids keep rising after the events have expired
)

sandboxes = Table(
    "sandboxes",
    tables,
    Column("id", Text, primary_key=True),
    Column("environment", Text, nullable=False),
    Column("name", Text),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("returncode", Integer),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),  # null while it lives
    Column("node_id", Text),
    Column("idempotency_key", Text),
    Column("row", Text, nullable=False),
    Index(None, "created_at", "id"),
    Index(None, "environment", "created_at", "id"),
    # Ordered by age: else SQLite walks an environment's whole past rather than sort two rows.
    Index(None, "environment", "name", "created_at", "id"),
    Index(None, "environment", "idempotency_key", "created_at", "id"),
    Index(None, "ended_at"),
)

FIXED = ("environment", "name", "created_at", "idempotency_key")
"""What never changes in a sandbox's row. SQLite writes each index anew of which a statement sets a column, be it to the
same value: so none of these is set again."""

events = Table(
    "events",
    tables,
    Column("id", _BIG, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("environment", Text, nullable=False),
    Column("sandbox_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("data", Text, nullable=False),
    Index(None, "sandbox_id", "id"),
    Index(None, "environment", "id"),
    Index(None, "at"),
)

audit = Table(
    "audit",
    tables,
    Column("id", _BIG, primary_key=True),
    Column("at", Double, nullable=False),
    Column("action", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("token", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("target", Text),
    Column("request_id", Text),
    Column("address", Text),
    Index(None, "environment", "id"),
    Index(None, "at"),
    sqlite_autoincrement=True,  # no id is used twice, even after the newest entries have expired
)

environments = Table(
    "environments",
    tables,
    Column("name", Text, primary_key=True),
    Column("quota", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

tokens = Table(
    "tokens",
    tables,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("last_used_at", Double),
    Column("created_by", Text),
    Column("digest", Text, nullable=False),
)

cordons = Table(
    "cordons",
    tables,
    Column("node_id", Text, primary_key=True),
    Column("why", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("left", Integer, nullable=False),  # 1: the node was emptied, and has left the cluster
)

pools = Table(
    "pools",
    tables,
    Column("id", Text, primary_key=True),  # environment/name
    Column("row", Text, nullable=False),
)

images = Table(
    "images",
    tables,
    Column("id", Text, primary_key=True),
    Column("environment", Text, nullable=False),
    Column("name", Text),
    Column("kind", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("cache_key", Text),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("row", Text, nullable=False),
)

secrets = Table(
    "secrets",
    tables,
    Column("id", Text, primary_key=True),  # environment/name
    Column("environment", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("keys", Text, nullable=False),  # their names, in JSON
    Column("version", _BIG, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("sealed", Text, nullable=False),  # its values, encrypted
)

usage = Table(
    "usage",
    tables,
    Column("hour", Integer, primary_key=True, autoincrement=False),  # since 1970
    Column("environment", Text, primary_key=True),
    Column("tag", Text, primary_key=True),  # its key; empty: the sums of the environment itself
    Column("value", Text, primary_key=True),
    Column("sandboxes", _BIG, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("cpu_seconds", Double, nullable=False),
    Column("memory_seconds", Double, nullable=False),
    Column("disk_seconds", Double, nullable=False),
    Column("network_in", _BIG, nullable=False),
    Column("network_out", _BIG, nullable=False),
    Index(None, "tag", "hour"),
)

volumes = Table(
    "volumes",
    tables,
    Column("id", Text, primary_key=True),
    Column("environment", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("row", Text, nullable=False),
)

version = Table(
    "alembic_version",
    MetaData(),  # as Alembic creates it
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
