"""What sandboxes used, by hour, environment and tag."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("hour", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("sandboxes", _BIG, nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("cpu_seconds", sa.Double(), nullable=False),
        sa.Column("memory_seconds", sa.Double(), nullable=False),
        sa.Column("disk_seconds", sa.Double(), nullable=False),
        sa.Column("network_in", _BIG, nullable=False),
        sa.Column("network_out", _BIG, nullable=False),
        sa.PrimaryKeyConstraint("hour", "environment", "tag", "value", name=op.f("pk_usage")),
    )
    op.create_index("ix_usage_tag_hour", "usage", ["tag", "hour"])
