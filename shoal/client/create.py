"""Creating many sandboxes in one call: its types and its two outcomes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, Unpack, cast, overload

from shoal.client.create_options import CreateOptions
from shoal.client.image.dev import reference_of
from shoal.client.secrets import uses_of
from shoal.model.errors import DeadlineExceeded, InvalidRequest, ShoalError, Unavailable
from shoal.model.info import SandboxInfo
from shoal.model.options import build_spec
from shoal.model.spec import SandboxSpec

if TYPE_CHECKING:
    from shoal.client.cluster import Client

S = TypeVar("S")
"""A sandbox."""

BATCH = 1000
"""Creates sent to the cluster in one call."""

_DOUBT_S = 30.0

MOST = 100_000
"""The most in one call."""


class CommonOptions(CreateOptions, total=False):
    """Options for all sandboxes, and options of the call."""

    deadline: float
    client: Client | None


Wanted = int | Sequence[CreateOptions]


class CreateManyCall(Protocol[S]):
    """`Sandbox.create_many`."""

    @overload
    def __call__(
        self, wanted: Wanted, *, return_errors: Literal[False] = False, **options: Unpack[CommonOptions]
    ) -> list[S]: ...
    @overload
    def __call__(
        self, wanted: Wanted, *, return_errors: Literal[True], **options: Unpack[CommonOptions]
    ) -> list[S | ShoalError]: ...

    @overload
    async def aio(
        self, wanted: Wanted, *, return_errors: Literal[False] = False, **options: Unpack[CommonOptions]
    ) -> list[S]: ...
    @overload
    async def aio(
        self, wanted: Wanted, *, return_errors: Literal[True], **options: Unpack[CommonOptions]
    ) -> list[S | ShoalError]: ...


def create_many_call(call: Callable[..., Sequence[S | ShoalError]]) -> CreateManyCall[S]:
    """The same call, with overloads that a plain signature cannot express."""
    return cast(CreateManyCall[S], call)


async def spec_for(client: Client, options: Mapping[str, Any]) -> SandboxSpec:
    """The spec for the options that a caller gave, with the cluster's defaults; its values are not checked yet. An
    `Image` is built first.

    Raises `InvalidRequest`, and the errors of a build.
    """
    environment = options.get("environment")
    if environment is None:
        environment = await client.transport.default_environment()
    image = await reference_of(options.get("image"), client, environment)
    given = {**options, "environment": environment, "image": image, "secrets": uses_of(options.get("secrets"))}
    return build_spec(given, await client.defaults.aio())


async def specs_of(
    client: Client, wanted: Wanted, common: Mapping[str, Any], key: str
) -> list[SandboxSpec | InvalidRequest]:
    """A spec for each that is wanted, with an idempotency key of its own made of `key`, or what is wrong with its
    options; their values are not checked yet.
    """
    own = _options_of_each(wanted)
    if len(own) > 1 and common.get("name") is not None:
        raise InvalidRequest("name: it is one sandbox's only; give each its own in the list `wanted`", field="name")
    specs: list[SandboxSpec | InvalidRequest] = []
    for number, options in enumerate(own):
        try:
            if not isinstance(options, Mapping):
                raise InvalidRequest(
                    f"wanted[{number}]: {str(options)[:100]!r} is no dict of arguments; give one", field="wanted"
                )
            specs.append(await spec_for(client, {**common, "idempotency_key": f"{key}:{number}", **options}))
        except InvalidRequest as error:
            specs.append(error)
    return specs


def _options_of_each(wanted: Any) -> Sequence[Mapping[str, Any]]:
    if isinstance(wanted, int) and not isinstance(wanted, bool) and 0 <= wanted <= MOST:
        return [{}] * wanted
    if isinstance(wanted, list | tuple) and len(wanted) <= MOST:
        return wanted
    raise InvalidRequest(
        f"wanted: {str(wanted)[:100]!r} is neither a number of sandboxes (at most {MOST:,}) nor a list of arguments",
        field="wanted",
    )


async def create_all(
    client: Client, specs: Sequence[SandboxSpec | InvalidRequest], *, key: str | None, deadline: float, or_none: bool
) -> list[SandboxInfo | ShoalError]:
    """What became of each, in their order, within `deadline` seconds.

    `key`: the specs' idempotency key, where the caller does not know it.

    `or_none`: where one could not be made, the others are ended and its error is raised. Where it is given up, none
    stays either way.
    """
    wrong = [_wrong(spec) for spec in specs]
    if or_none and (error := next(filter(None, wrong), None)):
        raise error
    good = [spec for spec, error in zip(specs, wrong, strict=True) if error is None and isinstance(spec, SandboxSpec)]
    made = iter(await _create_good(client, good, key, deadline, or_none))
    return [error or next(made) for error in wrong]


def _wrong(spec: SandboxSpec | InvalidRequest) -> InvalidRequest | None:
    if isinstance(spec, InvalidRequest):
        return spec
    from shoal.model.spec_model import check_spec  # imported only now: it loads pydantic

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
        await client.rollback.run(_end(client, specs, made))  # the transport undoes those under way
        raise
    if or_none and (errors := [each for each in made if isinstance(each, ShoalError)]):
        await client.rollback.run(_end(client, specs, made), whole=True)
        if lost(errors[0]):
            errors[0].retryable = False
        raise errors[0]
    return [named(each, key) if isinstance(each, ShoalError) else each for each in made]


def lost(error: ShoalError) -> bool:
    """Whether only the answer is missing, so that the call may have taken effect."""
    return isinstance(error, Unavailable) and bool(error.fields.get("sent"))


def named(error: ShoalError, key: str | None, as_given: str = "idempotency_key={!r}") -> ShoalError:
    """`error` of a create that carries the idempotency key `key`, where its caller does not know that one (else None).

    The same call again would have another key, and make another sandbox: it is told the key, and how to give it.
    """
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
