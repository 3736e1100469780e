"""Sample rows and records for the store's tests."""

from __future__ import annotations

from typing import Any

from shoal.actors.controller.phase import Phase
from shoal.actors.controller.record import SandboxRecord, to_row
from shoal.actors.messages import End
from shoal.model.access import AuditEntry, Environment, Quota, SandboxEvent, Scope, StoredToken, TokenInfo
from shoal.model.states import Reason
from tests.unit import builders


def living(sandbox_id: str, at: float = 1.0, **spec: Any) -> dict[str, Any]:
    return to_row(SandboxRecord(sandbox_id, builders.spec(**spec), at, {"run": "7"}))


def ended(sandbox_id: str, at: float = 1.0, ended_at: float = 2.0, **spec: Any) -> dict[str, Any]:
    record = SandboxRecord(sandbox_id, builders.spec(**spec), at, {})
    record.life.phase = Phase.CLOSED
    record.finish(End(Reason.COMPLETED, 3, "its command ended", ended_at))
    return to_row(record)


def event(number: int, sandbox_id: str = "sb-1", at: float = 1.0, environment: str = "main") -> SandboxEvent:
    return SandboxEvent(number, at, environment, sandbox_id, "running", {"node_id": "n", "number": number})


def entry(at: float = 1.0, **changes: Any) -> AuditEntry:
    values: dict[str, Any] = {"action": "sandbox.create", "outcome": "ok", "token": "tk-1", "environment": "main"}
    return AuditEntry(at=at, **{**values, **changes})


def environment(name: str, **quota: Any) -> Environment:
    return Environment(name, Quota(**quota), 1.5)


def token(token_id: str, **changes: Any) -> StoredToken:
    values: dict[str, Any] = {"name": "ci", "environment": "main", "scope": Scope.RUN, "created_at": 1.25}
    return StoredToken(TokenInfo(id=token_id, **{**values, **changes}), "ab" * 32)


def plain(row: dict[str, Any] | None) -> Any:
    """A row as JSON gives it back: tuples are lists."""
    import json

    return json.loads(json.dumps(row))
