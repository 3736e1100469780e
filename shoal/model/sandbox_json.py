"""A sandbox in JSON, as the API speaks of it: flat, with the names of `Sandbox.create`'s arguments.

    request   image, command, name, tags, env, workdir, user, cpu [request, limit], memory [request, limit], disk, gpu, pids, timeout,
              idle_timeout, pty, network, region, runtime, environment
    answer    the same without `env` (which may hold secrets), and id, state, created_at, started_at, ended_at, reason, returncode, message,
              node_id

Units as everywhere: cores, MiB, seconds, unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.model.info import SandboxInfo
from shoal.model.spec import Resources, SandboxSpec
from shoal.model.states import Reason, State

_PLAIN = (
    "image",
    "name",
    "workdir",
    "user",
    "timeout",
    "idle_timeout",
    "pty",
    "network",
    "region",
    "runtime",
    "environment",
)
_COUNTS = ("disk", "gpu", "pids")


def spec_to_json(spec: SandboxSpec) -> dict[str, Any]:
    """The body of a create. The idempotency key is not in it: it travels as a header, or beside it in a batch."""
    r = spec.resources
    return {
        **{name: getattr(spec, name) for name in _PLAIN},
        **{name: getattr(r, name) for name in _COUNTS},
        "command": list(spec.command),
        "tags": dict(spec.tags),
        "env": dict(spec.env),
        "cpu": [r.cpu_request, r.cpu_limit],
        "memory": [r.memory_request, r.memory_limit],
    }


def info_to_json(info: SandboxInfo) -> dict[str, Any]:
    """The answer that describes a sandbox."""
    data = spec_to_json(info.spec)
    del data["env"]
    return {
        **data,
        "id": info.id,
        "state": info.state.value,
        "tags": dict(info.tags),
        "created_at": info.created_at,
        "started_at": info.started_at,
        "ended_at": info.ended_at,
        "reason": None if info.reason is None else info.reason.value,
        "returncode": info.returncode,
        "message": info.message,
        "node_id": info.node_id,
    }


def info_from_json(data: Mapping[str, Any]) -> SandboxInfo:
    """`info_to_json` back again; `KeyError`, `ValueError` or `TypeError` where it is none."""
    cpu, memory = data["cpu"], data["memory"]
    resources = Resources(
        cpu_request=cpu[0],
        cpu_limit=cpu[1],
        memory_request=memory[0],
        memory_limit=memory[1],
        **{name: data[name] for name in _COUNTS},
    )
    return SandboxInfo(
        id=data["id"],
        state=State(data["state"]),
        spec=SandboxSpec(
            resources=resources,
            command=tuple(data["command"]),
            tags=dict(data["tags"]),
            **{name: data[name] for name in _PLAIN},
        ),
        created_at=data["created_at"],
        started_at=data["started_at"],
        ended_at=data["ended_at"],
        reason=None if data["reason"] is None else Reason(data["reason"]),
        returncode=data["returncode"],
        message=data["message"],
        node_id=data["node_id"],
        tags=dict(data["tags"]),
    )
