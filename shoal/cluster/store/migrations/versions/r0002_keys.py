"""The newest sandbox of a key, or of a name, is found without a look at others."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _index("environment", "idempotency_key", "created_at", "id")
    _index("environment", "name", "created_at", "id")
    op.drop_index(op.f("ix_sandboxes_name"), "sandboxes")


def _index(*columns: str) -> None:
    op.create_index(op.f(f"ix_sandboxes_{'_'.join(columns)}"), "sandboxes", list(columns))
