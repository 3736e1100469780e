"""Making many sandboxes in one call: the types of its options, and its two outcomes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, Unpack, cast, overload

from shoal._spec import Cpu, Memory, build_spec
from shoal.model.errors import InvalidRequest, ShoalError
from shoal.model.info import SandboxInfo
from shoal.model.spec import NetworkMode, Runtime, SandboxSpec

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.sandbox import Sandbox

BATCH = 1000
"""Creates that go to the cluster in one call."""

MOST = 100_000
"""More than this in one call is a mistake."""


class CreateOptions(TypedDict, total=False):
    """The arguments of `Sandbox.create` that say what a sandbox is."""

    command: Sequence[str]
    image: str | None
    name: str | None
    tags: Mapping[str, str] | None
    env: Mapping[str, str] | None
    workdir: str | None
    user: str | None
    cpu: Cpu
    memory: Memory
    disk: int | None
    gpu: int
    pids: int | None
    timeout: float | None
    idle_timeout: float | None
    pty: bool
    network: NetworkMode
    region: str | None
    runtime: Runtime
    environment: str | None
    idempotency_key: str | None


class CommonOptions(CreateOptions, total=False):
    """And those that hold for all of them."""

    deadline: float
    client: Client | None


Wanted = int | Sequence[CreateOptions]


class CreateManyCall(Protocol):
    """`Sandbox.create_many`."""

    @overload
    def __call__(
        self, wanted: Wanted, *, return_errors: Literal[False] = False, **options: Unpack[CommonOptions]
    ) -> list[Sandbox]: ...
    @overload
    def __call__(
        self, wanted: Wanted, *, return_errors: Literal[True], **options: Unpack[CommonOptions]
    ) -> list[Sandbox | ShoalError]: ...

    @overload
    async def aio(
        self, wanted: Wanted, *, return_errors: Literal[False] = False, **options: Unpack[CommonOptions]
    ) -> list[Sandbox]: ...
    @overload
    async def aio(
        self, wanted: Wanted, *, return_errors: Literal[True], **options: Unpack[CommonOptions]
    ) -> list[Sandbox | ShoalError]: ...


def create_many_call(twin: object) -> CreateManyCall:
    """The twin, with a type that says more than a plain signature can."""
    return cast(CreateManyCall, twin)


_PLAIN: dict[str, Any] = {
    **dict.fromkeys(
        (
            *("image", "name", "tags", "env", "workdir", "user", "cpu", "memory", "disk", "pids", "timeout"),
            *("idle_timeout", "region", "environment", "idempotency_key"),
        )
    ),
    "command": (),
    "gpu": 0,
    "pty": False,
    "network": "default",
    "runtime": "runc",
}


async def specs_of(client: Client, wanted: Wanted, common: Mapping[str, Any]) -> list[SandboxSpec]:
    """A spec for each that is wanted. Raises `InvalidRequest` for arguments that none has, and shapes that do not fit."""
    own = _options_of_each(wanted)
    if len(own) > 1 and common.get("name") is not None:
        raise InvalidRequest("name: it is one sandbox's only; give each its own in the list `wanted`", field="name")
    key = common.get("idempotency_key") or secrets.token_hex(16)
    specs = []
    for number, options in enumerate(own):
        given = {**common, "idempotency_key": f"{key}:{number}", **options}
        if unknown := given.keys() - _PLAIN.keys():
            name = min(unknown)
            raise InvalidRequest(f"{name}: `create` has no such argument", field=name)
        specs.append(await _spec(client, {**_PLAIN, **given}))
    return specs


def _options_of_each(wanted: Any) -> Sequence[Mapping[str, Any]]:
    if isinstance(wanted, int) and not isinstance(wanted, bool) and 0 <= wanted <= MOST:
        return [{}] * wanted
    if isinstance(wanted, list | tuple) and len(wanted) <= MOST and all(isinstance(each, Mapping) for each in wanted):
        return wanted
    raise InvalidRequest(
        f"wanted: {str(wanted)[:100]!r} is neither a number of sandboxes (up to {MOST:,}) nor a list of their arguments",
        field="wanted",
    )


async def create_all(client: Client, specs: Sequence[SandboxSpec], deadline: float) -> list[SandboxInfo | ShoalError]:
    """What became of each, in their order."""
    made: list[SandboxInfo | ShoalError] = []
    for start in range(0, len(specs), BATCH):
        made += await client.transport.create_many(specs[start : start + BATCH], deadline=deadline)
    return made


async def or_none(client: Client, made: Sequence[SandboxInfo | ShoalError]) -> list[SandboxInfo]:
    """All of them; where one could not be made, the others are ended and its error is raised."""
    errors = [each for each in made if isinstance(each, ShoalError)]
    good = [each for each in made if isinstance(each, SandboxInfo)]
    if not errors:
        return good
    await asyncio.gather(*(client.transport.terminate(info.id) for info in good), return_exceptions=True)
    raise errors[0]


async def _spec(client: Client, options: dict[str, Any]) -> SandboxSpec:
    command = options.pop("command")
    if isinstance(command, str):
        raise InvalidRequest(f"command: {command!r} is one text; give a list of words", field="command")
    if options["environment"] is None:
        options["environment"] = await client.transport.default_environment()
    return build_spec(tuple(command), await client.defaults.aio(), **options)
