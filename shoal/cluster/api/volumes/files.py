"""The files of a volume: download whole or in parts, upload, list, remove. What is said in `files/routes.py` holds."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from shoal.client.retrying_agent import RetryingAgent
from shoal.cluster.api.access.audit import audited
from shoal.cluster.api.access.auth import environment_for, needs
from shoal.cluster.api.files.routes import CONDITIONS, DOWN, Mode, Upload, body_of, download
from shoal.cluster.api.request.answers import Json
from shoal.cluster.api.request.bodies import query_path
from shoal.cluster.api.request.context import Cluster, Who, context_of
from shoal.cluster.api.request.route import PathRoute, new_router
from shoal.cluster.api.schema.control import EnvironmentQuery
from shoal.cluster.api.schema.data import Written, mode_of
from shoal.cluster.api.schema.volumes import VolumeName
from shoal.model import verbs
from shoal.model.access import Scope
from shoal.model.volume_paths import errors_name_the_volumes_paths, inside
from shoal.transport.contract import Transport

_FILES = "/v1/volumes/{name}/files"

Path = Annotated[str, Query(min_length=1, description="In the volume; percent-encoded bytes, UTF-8 or not")]

router = new_router("volumes", PathRoute, dependencies=[needs(Scope.RUN)])


@router.get(
    _FILES, responses=DOWN, response_class=Response, openapi_extra=CONDITIONS, summary="Read a file of a volume"
)
async def read_volume_file(
    name: VolumeName, request: Request, path: Path, who: Who, transport: Cluster, environment: EnvironmentQuery = None
) -> Response:
    """A file's bytes, or one range of them."""
    agent = await _agent(transport, name, environment_for(who, environment))
    with errors_name_the_volumes_paths():
        return await download(agent, inside(query_path(request)), "", request)


@router.put(
    _FILES,
    response_class=Response,
    responses={200: {"model": Written}},
    openapi_extra={"requestBody": {"content": body_of()}},
    dependencies=[audited("volume.write")],
    summary="Write a file of a volume",
)
async def write_volume_file(
    name: VolumeName,
    request: Request,
    path: Path,
    who: Who,
    transport: Cluster,
    environment: EnvironmentQuery = None,
    mode: Mode = None,
) -> Response:
    """Writes a file, of any size; missing directories are made. A reader sees the old file or the new one, nothing
    between."""
    owner = context_of(request).environment = environment_for(who, environment)
    upload = Upload(inside(query_path(request)), mode_of(mode), True, False, "")
    agent = await _agent(transport, name, owner)
    with errors_name_the_volumes_paths():
        return Json({"size": await upload.run(agent, request)})


@router.delete(
    _FILES,
    status_code=204,
    response_class=Response,
    dependencies=[audited("volume.remove")],
    summary="Remove a file of a volume",
)
async def remove_volume_file(
    name: VolumeName,
    request: Request,
    path: Path,
    who: Who,
    transport: Cluster,
    environment: EnvironmentQuery = None,
    recursive: bool = False,
) -> Response:
    """Removes a file, a link (not its target), an empty directory, or with `recursive` a directory tree."""
    owner = context_of(request).environment = environment_for(who, environment)
    at = inside(query_path(request))
    agent = await _agent(transport, name, owner)
    with errors_name_the_volumes_paths():
        await agent.call(lambda agent: agent.remove(at, recursive, ""))
    return Response(status_code=204)


async def _agent(transport: Transport, name: str, environment: str) -> RetryingAgent:
    opened = await transport.ask(verbs.open_volume, name, environment)
    return RetryingAgent(transport, opened.id)
