"""A sandbox in JSON, as the API speaks of it: its options, flat, by the names of `Sandbox.create`'s arguments.

    request   the options
    answer    the same without `env` (which may hold secrets) and the idempotency key; and id, state, created_at,
              started_at, ended_at, reason, returncode, message, node_id, stopped_at, waiting,
              mounted_images, mounts_still, memory_state, not_kept

Units as everywhere: cores, MiB, seconds, unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.model.info import SandboxInfo
from shoal.model.options import options_of, spec_of
from shoal.model.spec import SandboxSpec
from shoal.model.states import Reason, State

HIDDEN = ("env", "idempotency_key")
"""Options that an answer does not tell."""

_PLAIN = ("id", "created_at", "started_at", "ended_at", "returncode", "message", "node_id")


def spec_to_json(spec: SandboxSpec) -> dict[str, Any]:
    """The body of a create. The idempotency key is not in it: it travels as a header, or beside it in a batch.

    What is None is left out, so that a cluster of an earlier version needs to know only the options that are used.
    """
    options = options_of(spec)
    del options["idempotency_key"]
    return {name: value for name, value in options.items() if value is not None}


def info_to_json(info: SandboxInfo) -> dict[str, Any]:
    """The answer that describes a sandbox."""
    options = options_of(info.spec)
    for name in HIDDEN:
        del options[name]
    return {
        **options,
        **{name: getattr(info, name) for name in (*_PLAIN, "stopped_at", "waiting", "memory_state")},
        "not_kept": list(info.not_kept),
        "state": info.state.value,
        "tags": dict(info.tags),
        "mounted_images": dict(info.mounted_images),
        "mounts_still": list(info.mounts_still),
        "reason": None if info.reason is None else info.reason.value,
    }


def info_from_json(data: Mapping[str, Any]) -> SandboxInfo:
    """The inverse of `info_to_json`; `KeyError`, `ValueError` or `TypeError` where `data` is no sandbox."""
    return SandboxInfo(
        **{name: data[name] for name in _PLAIN},
        stopped_at=data.get("stopped_at"),  # a cluster of an earlier version tells none of these five
        waiting=data.get("waiting"),
        mounted_images=dict(data.get("mounted_images", {})),
        mounts_still=tuple(data.get("mounts_still", ())),
        memory_state=data.get("memory_state"),
        state=State(data["state"]),
        spec=spec_of({**data, "tags": dict(data["tags"])}),
        reason=None if data["reason"] is None else Reason(data["reason"]),
        tags=dict(data["tags"]),
    )
