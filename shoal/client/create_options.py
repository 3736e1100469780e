"""The options of `Sandbox.create`, as editors and type checkers see them. What they mean stands in `model/spec.py`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from shoal.model.mounts import Mountable, MountSpec
from shoal.model.options import docs
from shoal.model.spec import NetworkMode, Placement, Restart, Runtime

if TYPE_CHECKING:
    from shoal.client.image.image import Image
    from shoal.client.secrets import Secret

F = TypeVar("F", bound=Callable[..., Any])


class SandboxOptions(TypedDict, total=False):
    """What a sandbox is to be, except for its command. What is not given, or None, is the default."""

    image: str | Image | None
    cpu: float | tuple[float, float] | None
    memory: int | tuple[int, int] | None
    disk: int | None
    pids: int | None
    gpu: int | None
    name: str | None
    tags: Mapping[str, str] | None
    env: Mapping[str, str] | None
    volumes: Mapping[str, Mountable | str] | Sequence[MountSpec] | None
    secrets: Sequence[Secret] | None
    workdir: str | os.PathLike[str] | None
    user: str | None
    hostname: str | None
    timeout: float | None
    idle_timeout: float | None
    persistent: bool | None
    restart: Restart | None
    autostart: bool | None
    owner_lease: float | None
    pty: bool | None
    network: NetworkMode | None
    region: str | Sequence[str] | None
    zone: str | None
    placement: Placement | None
    wait_for_capacity: bool | None
    runtime: Runtime | None
    environment: str | None
    idempotency_key: str | None


class CreateOptions(SandboxOptions, total=False):
    """The same with the command: one sandbox of many."""

    command: Sequence[str]


def spell_out_options(function: F) -> F:
    """Gives a function that takes `**options: Unpack[SandboxOptions]` each of them in its signature and its docstring,
    for `help()`.
    """
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    listed = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in SandboxOptions.__annotations__.items()
    ]
    function.__signature__ = signature.replace(parameters=[*own, *listed])  # type: ignore[attr-defined]
    lines = "\n".join(f"    {name}: {docs()[name]}" for name in SandboxOptions.__annotations__)
    function.__doc__ = f"{inspect.getdoc(function)}\n\nOptions, each optional:\n\n{lines}"
    return function
