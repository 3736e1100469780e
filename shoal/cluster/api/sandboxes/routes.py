"""Sandboxes: create, get, find, list, tag, wait, stop, start, terminate."""

from __future__ import annotations

import secrets
from typing import Annotated
from urllib.parse import unquote

from fastapi import Header, Path, Query
from starlette.requests import Request

from shoal.client.create import named
from shoal.cluster.api.access.auth import environment_for
from shoal.cluster.api.request.answers import Json
from shoal.cluster.api.request.context import Cluster, Who, context_of
from shoal.cluster.api.request.route import LargeRoute, new_router, verb_route
from shoal.cluster.api.sandboxes.detached import seen_through
from shoal.cluster.api.sandboxes.dev_image import with_dev_image
from shoal.cluster.api.schema.control import (
    Deadline,
    EnvironmentQuery,
    Renewal,
    Renewed,
    Sandbox,
    SandboxCreate,
    SandboxId,
    SandboxPage,
    SandboxStart,
    Tags,
)
from shoal.model import field_types, verbs
from shoal.model.cursors import MAX_SORTED, decode_sorted, encode_cursor
from shoal.model.errors import InvalidRequest, Unavailable
from shoal.model.ids import NAME
from shoal.model.info import Listing
from shoal.model.sandbox_json import info_to_json
from shoal.model.sorting import NEWEST, SORTS, cursor_at
from shoal.model.states import State

IdempotencyKey = Annotated[
    field_types.IdempotencyKey | None,
    Header(
        alias="Idempotency-Key",
        description="1 to 128 printable ASCII characters: the same key gives the same sandbox.",
        examples=["run-42"],
    ),
]

KEY_AS_GIVEN = "Idempotency-Key: {}"


router = new_router("sandboxes", LargeRoute)


@verb_route(
    router,
    verbs.create,
    status_code=201,
    response_model=Sandbox,
    responses={202: {"model": Sandbox, "description": "Accepted and on record (`wait=false`)"}},
    summary="Create a sandbox",
)
async def create_sandbox(
    body: SandboxCreate,
    request: Request,
    who: Who,
    cluster: Cluster,
    wait: Annotated[bool, Query(description="Whether to answer only once it runs.")] = True,
    deadline: Annotated[Deadline, Query(description="Seconds for that; then nothing is left of it.")] = 300.0,
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """Creates a sandbox, and answers once it runs.

    If the client leaves before that, the create goes on, and the same `Idempotency-Key` gives its result. If the result
    is not known (503 with `sent`) and the request had no key, repeat it with the answer's `idempotency_key`.
    """
    context = context_of(request)
    context.environment = environment_for(who, body.environment)
    key = idempotency_key or secrets.token_hex(16)
    spec = await with_dev_image(body.spec(await cluster.defaults(), context.environment, key), cluster)
    try:
        info = await seen_through(request, cluster.create(spec, deadline=deadline, wait=wait))
    except Unavailable as error:
        raise named(error, key if idempotency_key is None else None, KEY_AS_GIVEN) from None
    context.target = info.id
    return Json(info_to_json(info), 201 if wait else 202)


@verb_route(router, verbs.list_sandboxes, response_model=SandboxPage, summary="List sandboxes")
async def list_sandboxes(
    who: Who,
    cluster: Cluster,
    environment: EnvironmentQuery = None,
    tag: Annotated[
        list[Annotated[str, Query(max_length=1025)]],
        Query(
            description="`key:value`; if repeated, all must match. In the key, `%3A` is `:` and `%25` is `%`.",
            max_length=64,
        ),
    ] = [],  # noqa: B006  # FastAPI copies it
    state: Annotated[list[State], Query(description="Only those in one of these states.", max_length=len(State))] = [],  # noqa: B006
    region: Annotated[str | None, Query(min_length=1, max_length=256)] = None,
    image: Annotated[str | None, Query(min_length=1, max_length=512, description="As it was asked for.")] = None,
    search: Annotated[
        str | None,
        Query(min_length=1, max_length=256, description="Only those with this in id, name, image or a tag."),
    ] = None,
    include_ended: Annotated[bool, Query(description="Ended ones too, where no state is given.")] = False,
    sort: Annotated[
        str,
        Query(
            max_length=32,
            description=f"One of {', '.join(f'`{each}`' for each in SORTS)}; with `-`, backwards. In any order but "
            "newest first, of ended ones only the newest `limits.history` are listed.",
        ),
    ] = NEWEST,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(max_length=MAX_SORTED, description="`next_cursor` of the page before.")] = None,
) -> Json:
    """Lists sandboxes, newest first unless `sort` says otherwise, in pages. A page may hold fewer than `limit`, even
    none, and still have a next one: each looks at a limited number of old sandboxes."""
    listing = Listing(
        environment=environment_for(who, environment),
        tags=_tags(tag),
        states=tuple(dict.fromkeys(state)),
        include_ended=include_ended,
        limit=limit + 1,
        region=region,
        before=None if cursor is None else decode_sorted(cursor),
        image=image,
        search=search,
        sort=sort,
    )
    found = await cluster.ask(verbs.list_sandboxes, listing)
    page = found.sandboxes[:limit]
    reached = cursor_at(page[-1], sort) if len(found.sandboxes) > limit else found.reached
    more = None if reached is None else encode_cursor(reached)
    return Json({"sandboxes": [info_to_json(info) for info in page], "next_cursor": more})


# Before all with an id in the path.
@verb_route(router, verbs.renew, response_model=Renewed, summary="Renew owner leases")
async def renew_leases(body: Renewal, cluster: Cluster) -> Json:
    """Lets each live on for its `owner_lease`, from now on. Its creator asks for that well before the lease is over, as
    the Python client does by itself."""
    return Json({"renewed": await cluster.ask(verbs.renew, body.sandbox_ids)})


@verb_route(router, verbs.find, response_model=Sandbox, summary="Find a sandbox by its name")
async def find_sandbox(
    name: Annotated[str, Path(max_length=64, pattern=f"^{NAME.pattern}$")],
    who: Who,
    cluster: Cluster,
    environment: EnvironmentQuery = None,
) -> Json:
    """The living sandbox of that name, else the last that had it."""
    return Json(info_to_json(await cluster.ask(verbs.find, name, environment_for(who, environment))))


@verb_route(router, verbs.get, response_model=Sandbox, summary="Look at a sandbox")
async def get_sandbox(sandbox_id: SandboxId, cluster: Cluster) -> Json:
    """Its newest state; for one that has ended, how it ended."""
    return Json(info_to_json(await cluster.ask(verbs.get, sandbox_id)))


@verb_route(router, verbs.terminate, response_model=Sandbox, summary="Terminate a sandbox")
async def terminate_sandbox(sandbox_id: SandboxId, request: Request, cluster: Cluster) -> Json:
    """Ends it, and answers once its processes are gone. For one that has ended: how it ended."""
    return Json(info_to_json(await seen_through(request, cluster.terminate(sandbox_id))))


@verb_route(router, verbs.stop, response_model=Sandbox, summary="Stop a persistent sandbox")
async def stop_sandbox(sandbox_id: SandboxId, request: Request, cluster: Cluster) -> Json:
    """Stops it, and answers once nothing of it runs. Its disk, name, tags and tunnels stay."""
    return Json(info_to_json(await seen_through(request, cluster.stop(sandbox_id))))


@verb_route(router, verbs.suspend, response_model=Sandbox, summary="Suspend a persistent sandbox")
async def suspend_sandbox(sandbox_id: SandboxId, request: Request, cluster: Cluster) -> Json:
    """Stops one in gVisor and keeps its memory. Whatever is asked of it later has it go on where it was."""
    return Json(info_to_json(await seen_through(request, cluster.suspend(sandbox_id))))


@verb_route(router, verbs.pause, response_model=Sandbox, summary="Pause a sandbox")
async def pause_sandbox(sandbox_id: SandboxId, request: Request, cluster: Cluster) -> Json:
    """Freezes its processes where they are. Until it is resumed, all that would reach it is a 409 (`paused`)."""
    return Json(info_to_json(await seen_through(request, cluster.ask(verbs.pause, sandbox_id))))


@verb_route(router, verbs.resume, response_model=Sandbox, summary="Resume a paused or suspended sandbox")
async def resume_sandbox(sandbox_id: SandboxId, request: Request, cluster: Cluster) -> Json:
    """Lets it go on where it was."""
    return Json(info_to_json(await seen_through(request, cluster.ask(verbs.resume, sandbox_id))))


@verb_route(router, verbs.start, response_model=Sandbox, summary="Start a persistent sandbox again")
async def start_sandbox(
    sandbox_id: SandboxId, request: Request, cluster: Cluster, body: SandboxStart | None = None
) -> Json:
    """Starts one that is stopped, on its machine, and answers once it runs."""
    deadline = (body or SandboxStart()).deadline
    return Json(info_to_json(await seen_through(request, cluster.ask(verbs.start, sandbox_id, deadline))))


@verb_route(
    router,
    verbs.set_tags,
    response_model=Sandbox,
    summary="Replace a sandbox's tags",
)
async def set_tags(sandbox_id: SandboxId, body: Tags, cluster: Cluster) -> Json:
    """Replaces all its tags."""
    return Json(info_to_json(await cluster.ask(verbs.set_tags, sandbox_id, body.tags)))


@verb_route(router, verbs.wait, response_model=Sandbox, summary="Await a sandbox's end")
async def wait_sandbox(
    sandbox_id: SandboxId,
    cluster: Cluster,
    timeout: Annotated[
        float, Query(ge=0, le=60, allow_inf_nan=False, description="Seconds to wait for its end.")
    ] = 30.0,
) -> Json:
    """Its state once it has ended, or after `timeout` seconds, whichever is first. Ask again while it lives."""
    return Json(info_to_json(await cluster.wait(sandbox_id, timeout)))


def _tags(pairs: list[str]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for pair in pairs:
        key, colon, value = pair.partition(":")
        if not colon or not key:
            raise InvalidRequest(f"tag: {pair[:64]!r} is no tag; give 'key:value'", field="tag")
        if tags.setdefault(unquote(key), value) != value:
            raise InvalidRequest(f"tag: {key[:64]!r} has one value at a time; ask for one", field="tag")
    return tags
