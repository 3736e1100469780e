"""Sandboxes are looked for by the key that they were created with."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_index(op.f("ix_sandboxes_environment_idempotency_key"), "sandboxes", ["environment", "idempotency_key"])
