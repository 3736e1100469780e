"""Directories in a sandbox: list, stat, make, move."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from shoal.client.retrying_agent import RetryingAgent
from shoal.cluster.api.access.audit import audited
from shoal.cluster.api.access.auth import needs
from shoal.cluster.api.files.routes import Path, User
from shoal.cluster.api.request.answers import Json
from shoal.cluster.api.request.bodies import query_path
from shoal.cluster.api.request.context import Cluster
from shoal.cluster.api.request.route import PathRoute, new_router
from shoal.cluster.api.schema.data import Entries, EntryModel, MakeDirectory, Move, entry_json, mode_of
from shoal.model.access import Scope
from shoal.wire.files import MAX_ENTRIES

_AT = "/v1/sandboxes/{sandbox_id}"

router = new_router("files", PathRoute, dependencies=[needs(Scope.RUN)])


@router.get(f"{_AT}/entries", response_class=Response, responses={200: {"model": Entries}})
async def list_directory(
    sandbox_id: str,
    request: Request,
    path: Path,
    transport: Cluster,
    after: Annotated[str, Query(description="A name: those that come after it; percent-encoded as `path`")] = "",
    limit: Annotated[int, Query(ge=0, le=MAX_ENTRIES, description="That many at most; 0: all")] = 0,
    user: User = "",
) -> Response:
    """What a directory holds, sorted by name. Page by page: `after` is the last name of the page before; an empty page
    comes after the last."""
    name = query_path(request)
    begin = query_path(request, "after") if after else ""
    found = await RetryingAgent(transport, sandbox_id).call(lambda agent: agent.list(name, user, begin, limit))
    return Json({"entries": [entry_json(entry) for entry in found]})


@router.get(f"{_AT}/stat", response_class=Response, responses={200: {"model": EntryModel}})
async def stat_path(
    sandbox_id: str,
    request: Request,
    path: Path,
    transport: Cluster,
    follow: Annotated[bool, Query(description="Through links")] = True,
    user: User = "",
) -> Response:
    """What is at a path."""
    name = query_path(request)
    agent = RetryingAgent(transport, sandbox_id)
    return Json(entry_json(await agent.call(lambda agent: agent.stat(name, follow, user))))


@router.post(f"{_AT}/mkdir", status_code=204, response_class=Response, dependencies=[audited("files.mkdir")])
async def make_directory(sandbox_id: str, body: MakeDirectory, transport: Cluster) -> Response:
    """Makes a directory."""
    await RetryingAgent(transport, sandbox_id).call(
        lambda agent: agent.mkdir(body.path, body.parents, mode_of(body.mode), body.user or "")
    )
    return Response(status_code=204)


@router.post(f"{_AT}/move", status_code=204, response_class=Response, dependencies=[audited("files.move")])
async def move_path(sandbox_id: str, body: Move, transport: Cluster) -> Response:
    """Moves a file or a tree, across file systems too."""
    await RetryingAgent(transport, sandbox_id).once(
        lambda agent: agent.move(body.path, body.to, body.overwrite, body.user or ""), f"move {body.path}"
    )
    return Response(status_code=204)


@router.post(f"{_AT}/copy", status_code=204, response_class=Response, dependencies=[audited("files.copy")])
async def copy_path(sandbox_id: str, body: Move, transport: Cluster) -> Response:
    """Copies a file or a tree, links as they are."""
    await RetryingAgent(transport, sandbox_id).once(
        lambda agent: agent.copy(body.path, body.to, body.overwrite, body.user or ""), f"copy {body.path}"
    )
    return Response(status_code=204)
