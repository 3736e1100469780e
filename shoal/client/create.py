"""Making many sandboxes in one call: the types of its options, and its two outcomes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, Unpack, cast, overload

from shoal.client.arguments import Cpu, Memory, build_spec
from shoal.model.errors import DeadlineExceeded, InvalidRequest, ShoalError, Unavailable
from shoal.model.info import SandboxInfo
from shoal.model.spec import NetworkMode, Runtime, SandboxSpec
from shoal.model.validate import check_spec

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.client.sandbox import Sandbox

BATCH = 1000
"""Creates that go to the cluster in one call."""

_DOUBT_S = 30.0

MOST = 100_000
"""More than this in one call is a mistake."""


class CreateOptions(TypedDict, total=False):
    """The arguments of `Sandbox.create` that say what a sandbox is."""

    command: Sequence[str]
    image: str | None
    name: str | None
    tags: Mapping[str, str] | None
    env: Mapping[str, str] | None
    workdir: str | os.PathLike[str] | None
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


def create_many_call(call: object) -> CreateManyCall:
    """The same call, with overloads that a plain signature cannot express."""
    return cast(CreateManyCall, call)


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


async def specs_of(client: Client, wanted: Wanted, common: Mapping[str, Any], key: str) -> list[SandboxSpec]:
    """A spec for each that is wanted, with an idempotency key of its own made of `key`. Raises `InvalidRequest` for arguments that none has, and
    shapes that do not fit."""
    own = _options_of_each(wanted)
    if len(own) > 1 and common.get("name") is not None:
        raise InvalidRequest("name: it is one sandbox's only; give each its own in the list `wanted`", field="name")
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


async def create_all(
    client: Client, specs: Sequence[SandboxSpec], *, key: str | None, deadline: float, or_none: bool
) -> list[SandboxInfo | ShoalError]:
    """What became of each, in their order, within `deadline` seconds. `key`: the specs' idempotency key, where the caller does not know it.

    `or_none`: where one could not be made, the others are ended and its error is raised. Where it is given up, none stays either way.
    """
    wrong = [_wrong(spec) for spec in specs]
    if or_none and (error := next(filter(None, wrong), None)):
        raise error
    good = [spec for spec, error in zip(specs, wrong, strict=True) if error is None]
    made = iter(await _create_good(client, good, key, deadline, or_none))
    return [error or next(made) for error in wrong]


def _wrong(spec: SandboxSpec) -> InvalidRequest | None:
    try:
        check_spec(spec, None)
    except InvalidRequest as error:
        return error
    return None


async def _create_good(
    client: Client, specs: Sequence[SandboxSpec], key: str | None, deadline: float, or_none: bool
) -> list[SandboxInfo | ShoalError]:
    end = time.monotonic() + deadline
    made: list[SandboxInfo | ShoalError] = []
    try:
        for start in range(0, len(specs), BATCH):
            batch = specs[start : start + BATCH]
            try:
                made += await _create_batch(client, batch, end - time.monotonic(), deadline)
            except ShoalError as error:
                if not made:
                    raise named(error, key) from None
                made += [error] * len(batch)
            if or_none and any(isinstance(each, ShoalError) for each in made):
                break
    except asyncio.CancelledError:
        await client.undoing.undo(_end(client, specs, made))  # the transport undoes what was under way
        raise
    if or_none and (errors := [each for each in made if isinstance(each, ShoalError)]):
        await client.undoing.undo(_end(client, specs, made), whole=True)
        if lost(errors[0]):
            errors[0].retryable = False
        raise errors[0]
    return [named(each, key) if isinstance(each, ShoalError) else each for each in made]


def lost(error: ShoalError) -> bool:
    """Whether it is the answer that did not come: what was asked for may have been done."""
    return isinstance(error, Unavailable) and bool(error.fields.get("sent"))


def named(error: ShoalError, key: str | None, as_given: str = "idempotency_key={!r}") -> ShoalError:
    """`error` of a create that carries the idempotency key `key`, where its caller does not know that one (else None). The same call again would
    have another key, and make another sandbox: it is told the key, and how to give it."""
    if key is None or not lost(error):
        return error
    told = Unavailable(
        f"{error.message}: the same call with {as_given.format(key)} makes nothing twice",
        **{**error.fields, "idempotency_key": key},
    )
    told.retryable = False
    return told


async def _create_batch(
    client: Client, specs: Sequence[SandboxSpec], left: float, deadline: float
) -> Sequence[SandboxInfo | ShoalError]:
    if left <= 0:
        raise DeadlineExceeded(
            f"it was not begun within {deadline:g} s: so many creates take longer; give a later deadline"
        )
    return await client.transport.create_many(specs, deadline=left)


async def _end(client: Client, specs: Sequence[SandboxSpec], made: Sequence[SandboxInfo | ShoalError]) -> None:
    """Ends those that were made; also of those the answer was lost of, which their keys tell."""
    transport = client.transport

    async def end(found: Sequence[SandboxInfo | ShoalError]) -> None:
        ids = [each.id for each in found if isinstance(each, SandboxInfo) and not each.ended]
        await asyncio.gather(*map(transport.terminate, ids), return_exceptions=True)

    await end(made)
    doubtful = [spec for spec, each in zip(specs, made, strict=False) if isinstance(each, ShoalError) and lost(each)]
    if doubtful:
        await end(await transport.create_many(doubtful, deadline=_DOUBT_S, wait=False))


async def _spec(client: Client, options: dict[str, Any]) -> SandboxSpec:
    command = options.pop("command")
    if isinstance(command, str) or not isinstance(command, Sequence):
        raise InvalidRequest(f"command: {command!r:.80} is no list of words; give one", field="command")
    if options["environment"] is None:
        options["environment"] = await client.transport.default_environment()
    return build_spec(tuple(command), await client.defaults.aio(), **options)
