"""Routes of volumes and their versions."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query
from starlette.requests import Request

from shoal.cluster.api.access.auth import environment_for, environment_to_list
from shoal.cluster.api.request.answers import Json, listed
from shoal.cluster.api.request.context import Cluster, Who, context_of
from shoal.cluster.api.request.route import new_router, verb_route
from shoal.cluster.api.schema.control import EnvironmentQuery, Sandbox
from shoal.cluster.api.schema.volumes import (
    VersionIn,
    VersionName,
    Volume,
    VolumeCreate,
    VolumeIn,
    VolumeLimits,
    VolumeName,
    VolumeOpen,
    VolumeRename,
    Volumes,
    VolumesUse,
)
from shoal.model import verbs
from shoal.model.sandbox_json import info_to_json

router = new_router("volumes")


@verb_route(router, verbs.create_volume, status_code=201, response_model=Volume, summary="Make a volume")
async def create_volume(body: VolumeCreate, request: Request, who: Who, cluster: Cluster) -> Json:
    """A directory that outlives sandboxes; `volumes` of a create mounts it."""
    context = context_of(request)
    context.environment = environment_for(who, body.environment)
    context.target = body.name
    made = await cluster.ask(
        verbs.create_volume, body.name, context.environment, body.size, body.files, body.ephemeral, body.exist_ok
    )
    return Json(made.to_dict(), 201)


@verb_route(router, verbs.volumes, response_model=Volumes, summary="List volumes")
async def list_volumes(
    who: Who,
    cluster: Cluster,
    environment: EnvironmentQuery = None,
    deleted: Annotated[bool, Query(description="Those that can be restored")] = False,
) -> Json:
    """The volumes of an environment; of all that the token may see, if none is named."""
    wanted = environment_to_list(who, environment)
    return listed(verbs.volumes, await cluster.ask(verbs.volumes, wanted, deleted))


@verb_route(router, verbs.volume, response_model=Volume, summary="Look at a volume")
async def get_volume(
    name: VolumeName,
    who: Who,
    cluster: Cluster,
    environment: EnvironmentQuery = None,
    use: Annotated[bool, Query(description="Tell what it holds, too, which takes a fifth of a second")] = False,
) -> Json:
    """Its limits, and what it holds."""
    return Json((await cluster.ask(verbs.volume, name, environment_for(who, environment), use)).to_dict())


@verb_route(router, verbs.volumes_use, response_model=VolumesUse, summary="Look at what an environment's volumes hold")
async def environments_volumes(name: Annotated[str, Path()], who: Who, cluster: Cluster) -> Json:
    """All together, beside the environment's quota."""
    return Json((await cluster.ask(verbs.volumes_use, environment_for(who, name))).to_dict())


@verb_route(router, verbs.limit_volume, response_model=Volume, summary="Limit a volume")
async def limit_volume(name: VolumeName, body: VolumeLimits, request: Request, who: Who, cluster: Cluster) -> Json:
    """Changes what it may hold. What it holds beyond that stays."""
    environment = context_of(request).environment = environment_for(who, body.environment)
    return Json((await cluster.ask(verbs.limit_volume, name, environment, body.size, body.files)).to_dict())


@verb_route(router, verbs.delete_volume, response_model=Volume, summary="Delete a volume")
async def delete_volume(
    name: VolumeName,
    request: Request,
    who: Who,
    cluster: Cluster,
    environment: EnvironmentQuery = None,
    now: Annotated[bool, Query(description="Without the time in which it can be restored")] = False,
) -> Json:
    """Nobody finds it any more, and its name is free. Sandboxes that have it mounted keep it."""
    owner = context_of(request).environment = environment_for(who, environment)
    return Json((await cluster.ask(verbs.delete_volume, name, owner, now)).to_dict())


@verb_route(router, verbs.restore_volume, response_model=Volume, summary="Restore a volume")
async def restore_volume(name: VolumeName, body: VolumeIn, request: Request, who: Who, cluster: Cluster) -> Json:
    """Takes a deletion back: of that id, or of the last that had the name."""
    owner = context_of(request).environment = environment_for(who, body.environment)
    return Json((await cluster.ask(verbs.restore_volume, name, owner)).to_dict())


@verb_route(router, verbs.commit_volume, response_model=Volume, summary="Commit a volume")
async def commit_volume(name: VolumeName, body: VolumeIn, request: Request, who: Who, cluster: Cluster) -> Json:
    """Answers once all that was written and closed in it is durable, and another reader has seen it; 503 where that
    could not be shown."""
    owner = context_of(request).environment = environment_for(who, body.environment)
    return Json((await cluster.ask(verbs.commit_volume, name, owner)).to_dict())


@verb_route(router, verbs.open_volume, response_model=Sandbox, summary="Open a volume's files")
async def open_volume(name: VolumeName, body: VolumeOpen, request: Request, who: Who, cluster: Cluster) -> Json:
    """A sandbox of the cluster's own in which they are at `/volume`, for its routes of files, entries and archives. It
    can be used for nothing else, and ends when nobody has used it for a minute."""
    owner = context_of(request).environment = environment_for(who, body.environment)
    return Json(info_to_json(await cluster.ask(verbs.open_volume, name, owner, body.other)))


@verb_route(router, verbs.rename_volume, response_model=Volume, summary="Rename a volume")
async def rename_volume(name: VolumeName, body: VolumeRename, request: Request, who: Who, cluster: Cluster) -> Json:
    """Gives it another name; sandboxes that have it mounted keep it."""
    owner = context_of(request).environment = environment_for(who, body.environment)
    return Json((await cluster.ask(verbs.rename_volume, name, owner, body.to)).to_dict())


@verb_route(router, verbs.snapshot_volume, status_code=201, response_model=Volume, summary="Make a version of a volume")
async def snapshot_volume(name: VolumeName, body: VersionIn, request: Request, who: Who, cluster: Cluster) -> Json:
    """Keeps all that is closed in it now; it shares the data of the files."""
    owner = context_of(request).environment = environment_for(who, body.environment)
    return Json((await cluster.ask(verbs.snapshot_volume, name, owner, body.version)).to_dict(), 201)


@verb_route(router, verbs.revert_volume, response_model=Volume, summary="Go back to a version of a volume")
async def revert_volume(
    name: VolumeName, version: VersionName, body: VolumeIn, request: Request, who: Who, cluster: Cluster
) -> Json:
    """Replaces all its files by those of the version, at once; 409 while a sandbox has the volume mounted."""
    owner = context_of(request).environment = environment_for(who, body.environment)
    return Json((await cluster.ask(verbs.revert_volume, name, owner, version)).to_dict())


@verb_route(router, verbs.delete_version, response_model=Volume, summary="Delete a version of a volume")
async def delete_version(
    name: VolumeName,
    version: VersionName,
    request: Request,
    who: Who,
    cluster: Cluster,
    environment: EnvironmentQuery = None,
) -> Json:
    """Its data goes as far as nothing else has it."""
    owner = context_of(request).environment = environment_for(who, environment)
    return Json((await cluster.ask(verbs.delete_version, name, owner, version)).to_dict())
