"""From the arguments of `Sandbox.create` to a spec: defaults filled in, shapes checked. The values are checked by `check_spec`, here and by the
cluster, which alone knows its limits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shoal.model.errors import InvalidRequest
from shoal.model.spec import NetworkMode, Resources, Runtime, SandboxSpec
from shoal.model.states import State

if TYPE_CHECKING:
    from shoal.model.settings import SandboxDefaults

Cpu = float | tuple[float, float] | None
Memory = int | tuple[int, int] | None


def build_spec(
    command: tuple[str, ...],
    defaults: SandboxDefaults,
    *,
    image: str | None,
    name: str | None,
    tags: Mapping[str, str] | None,
    env: Mapping[str, str] | None,
    workdir: str | os.PathLike[str] | None,
    user: str | None,
    cpu: Cpu,
    memory: Memory,
    disk: int | None,
    gpu: int,
    pids: int | None,
    timeout: float | None,
    idle_timeout: float | None,
    pty: bool,
    network: NetworkMode,
    region: str | None,
    runtime: Runtime,
    environment: str,
    idempotency_key: str | None,
) -> SandboxSpec:
    """The spec. Raises `InvalidRequest` for what is not of the shape it should be."""
    cpu_request, cpu_limit = _pair("cpu", cpu, defaults.cpu_request, defaults.cpu_limit)
    memory_request, memory_limit = _pair("memory", memory, defaults.memory_request, defaults.memory_limit)
    return SandboxSpec(
        image=defaults.image if image is None else image,
        resources=Resources(
            cpu_request=cpu_request,
            cpu_limit=cpu_limit,
            memory_request=memory_request,
            memory_limit=memory_limit,
            disk=defaults.disk if disk is None else disk,
            pids=defaults.pids if pids is None else pids,
            gpu=gpu,
        ),
        command=command,
        name=name,
        tags=mapping("tags", tags),
        env=mapping("env", env),
        workdir=os.fspath(workdir) if isinstance(workdir, os.PathLike) else workdir,
        user="" if user is None else user,
        timeout=defaults.timeout if timeout is None else timeout,
        idle_timeout=idle_timeout,
        pty=pty,
        network=network,
        region=region,
        runtime=runtime,
        environment=environment,
        idempotency_key=idempotency_key,
    )


def mapping(field: str, value: Mapping[str, str] | None) -> dict[str, str]:
    """A plain dict of what the caller gave."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{field}: {type(value).__name__} is no mapping; give a dict of strings", field=field)
    return dict(value)


def states_of(values: Sequence[State | str]) -> tuple[State, ...]:
    """States by their names."""
    for value in values:
        if value not in list(State):
            raise InvalidRequest(f"states: {value!r:.80} is none; there are {', '.join(State)}", field="states")
    return tuple(State(value) for value in values)


def _pair(field: str, value: Any, default_request: Any, default_limit: Any) -> tuple[Any, Any]:
    """Request and limit. One number is the request, and the limit is then the default one, or as high as the request."""
    if value is None:
        return default_request, default_limit
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise InvalidRequest(f"{field}: {len(value)} values; give one number, or (request, limit)", field=field)
        return value[0], value[1]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"{field}: {value!r} is no number; give one, or (request, limit)", field=field)
    return value, max(value, default_limit)
