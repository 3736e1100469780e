"""Conversion between the contract's objects and rows of the tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from operator import attrgetter
from typing import Any

import orjson

from shoal.actors.controller.store import Change, HourOfUse
from shoal.model.access import AuditEntry, Environment, Quota, SandboxEvent, Scope, StoredToken, TokenInfo
from shoal.model.images import ImageRecord
from shoal.model.info import Cordon
from shoal.model.pools import PoolInfo
from shoal.model.secrets import SecretInfo, StoredSecret
from shoal.model.states import TERMINAL
from shoal.model.volumes import VolumeInfo

Row = dict[str, Any]

_AUDIT_COLUMNS = tuple(each.name for each in fields(AuditEntry) if each.name != "id")


@dataclass(slots=True)
class Rows:
    """Changes as rows, by key: the later of two rows with the same key wins. `others`: those of all other tables, by
    table; None: the row is removed."""

    sandboxes: dict[str, Row] = field(default_factory=dict)
    events: dict[int, Row] = field(default_factory=dict)
    audit: list[Row] = field(default_factory=list)
    others: dict[str, dict[Any, Row | None]] = field(default_factory=dict)

    def add(self, later: Rows) -> None:
        self.sandboxes |= later.sandboxes
        self.events |= later.events
        self.audit += later.audit
        for table, rows in later.others.items():
            self.others.setdefault(table, {}).update(rows)

    @property
    def last_event(self) -> int:
        return max(self.events, default=0)


def rows_of(change: Change) -> Rows:
    """The rows of a change, copied: later changes by its caller have no effect."""
    return Rows(
        {row["id"]: sandbox_row(row) for row in change.sandboxes},
        {event.id: _event_row(event) for event in change.events},
        [_audit_row(entry) for entry in change.audit],
        {table: rows for table in _OTHERS if (rows := _other_rows(table, change))} if any(_others(change)) else {},
    )


def _other_rows(table: str, change: Change) -> dict[Any, Row | None]:
    put, removed = getattr(change, table), getattr(change, f"removed_{table}", ())
    key, row_of = _OTHERS[table]
    return {**{key(one): row_of(one) for one in put}, **dict.fromkeys(removed)}


def merged(changes: Iterable[Rows]) -> Rows:
    rows = Rows()
    for change in changes:
        rows.add(change)
    return rows


def text(value: str) -> str:
    """A text that databases accept: without the NULs and lone surrogates that foreign text may hold."""
    if value.isascii() and "\0" not in value:
        return value
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def sandbox_row(row: Mapping[str, Any]) -> Row:
    """The columns of a sandbox (`record.to_row`)."""
    spec, began, end = row["spec"], row.get("began") or {}, row.get("end") or {}
    ended = row["state"] in TERMINAL
    return {
        "id": row["id"],
        "environment": text(spec["environment"]),
        "name": _text(spec["name"]),
        "state": str(row["state"]),
        "reason": _text(end.get("reason")),
        "returncode": end.get("returncode"),
        "created_at": row["created_at"],
        "ended_at": end.get("ended_at", row["created_at"]) if ended else None,
        "node_id": _text(began.get("node_id")),
        "idempotency_key": _text(spec["idempotency_key"]),
        "row": _json(row),
    }


def event_of(row: Any) -> SandboxEvent:
    return SandboxEvent(row.id, row.at, row.environment, row.sandbox_id, row.kind, json.loads(row.data))


def audit_of(row: Any) -> AuditEntry:
    return AuditEntry(
        at=row.at,
        action=row.action,
        outcome=row.outcome,
        token=row.token,
        environment=row.environment,
        target=row.target,
        request_id=row.request_id,
        address=row.address,
        id=row.id,
    )


def environment_of(row: Any) -> Environment:
    return Environment(row.name, Quota(**json.loads(row.quota)), row.created_at)


def token_of(row: Any) -> StoredToken:
    info = TokenInfo(
        id=row.id,
        name=row.name,
        environment=row.environment,
        scope=Scope(row.scope),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
        created_by=row.created_by,
    )
    return StoredToken(info, row.digest)


def cordon_of(row: Any) -> Cordon:
    return Cordon(row.node_id, row.why, row.by, row.at, bool(row.left))


def pool_of(row: Any) -> PoolInfo:
    return PoolInfo.from_dict(json.loads(row.row))


def image_of(row: Any) -> ImageRecord:
    return ImageRecord.from_dict(json.loads(row.row))


def secret_of(row: Any) -> StoredSecret:
    info = SecretInfo(
        name=row.name,
        environment=row.environment,
        keys=tuple(json.loads(row.keys)),
        created_at=row.created_at,
        updated_at=row.updated_at,
        version=row.version,
        bytes=row.bytes,
        key_id=row.key_id,
    )
    return StoredSecret(info, row.sealed)


def volume_of(row: Any) -> VolumeInfo:
    return VolumeInfo.from_dict(json.loads(row.row))


def _event_row(event: SandboxEvent) -> Row:
    return {
        "id": event.id,
        "at": event.at,
        "environment": text(event.environment),
        "sandbox_id": text(event.sandbox_id),
        "kind": str(event.kind),
        "data": _json(event.data),
    }


def _audit_row(entry: AuditEntry) -> Row:
    # A refused caller chose some of these values; none may prevent the entry.
    values = ((name, getattr(entry, name)) for name in _AUDIT_COLUMNS)
    return {name: text(value) if isinstance(value, str) else value for name, value in values}


def _environment_row(environment: Environment) -> Row:
    return {
        "name": text(environment.name),
        "quota": _json(environment.quota.to_dict()),
        "created_at": environment.created_at,
    }


def _token_row(token: StoredToken) -> Row:
    row = {name: text(value) if isinstance(value, str) else value for name, value in token.info.to_dict().items()}
    return {**row, "digest": token.digest}


def _cordon_row(cordon: Cordon) -> Row:
    row = {name: text(value) if isinstance(value, str) else value for name, value in asdict(cordon).items()}
    return {**row, "left": int(cordon.left)}


def _pool_row(pool: PoolInfo) -> Row:
    row = pool.to_dict()
    del row["use"]
    return {"id": text(pool.id), "row": _json(row)}


def _image_row(image: ImageRecord) -> Row:
    row = image.to_row()
    del row["in_use"]
    return {
        "id": image.id,
        "environment": text(image.environment),
        "name": _text(image.name),
        "kind": image.kind.value,
        "digest": image.digest,
        "cache_key": _text(image.cache_key),
        "created_at": image.created_at,
        "expires_at": image.expires_at,
        "row": _json(row),
    }


def _secret_row(secret: StoredSecret) -> Row:
    info = secret.info
    return {**asdict(info), "id": info.id, "keys": _json(info.keys), "sealed": secret.sealed}


def _use_row(use: HourOfUse) -> Row:
    return {
        "hour": use.hour,
        "environment": text(use.environment),
        "tag": text(use.tag),
        "value": text(use.value),
        **asdict(use.amounts),
    }


def _volume_row(volume: VolumeInfo) -> Row:
    row = volume.to_dict()
    del row["use"]
    return {"id": volume.id, "environment": text(volume.environment), "name": text(volume.name), "row": _json(row)}


def _text(value: Any) -> str | None:
    return None if value is None else text(str(value))


_escaping = json.JSONEncoder(separators=(",", ":")).encode


def _json(value: Any) -> str:
    """In ASCII, for a database may have any encoding."""
    try:
        quick = orjson.dumps(value).decode()
    except TypeError:  # lone surrogates, of foreign text
        return _escaping(value)
    return quick if quick.isascii() else _escaping(value)


_OTHERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Row]]] = {
    "environments": (attrgetter("name"), _environment_row),
    "tokens": (attrgetter("info.id"), _token_row),
    "cordons": (attrgetter("node_id"), _cordon_row),
    "pools": (attrgetter("id"), _pool_row),
    "images": (attrgetter("id"), _image_row),
    "secrets": (attrgetter("info.id"), _secret_row),
    "usage": (attrgetter("hour", "environment", "tag", "value"), _use_row),
    "volumes": (attrgetter("id"), _volume_row),
}
"""Key and row of what a change has of each other table: tables and fields of `Change` have the same names."""

_others = attrgetter(*(each.name for each in fields(Change) if each.name not in ("sandboxes", "events", "audit")))
"""What a change has of all other tables. Nothing, mostly: a sandbox's changes come by the hundred each second."""
