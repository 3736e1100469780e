"""Routes of images: take one of a sandbox, list, look at, name, delete and collect them."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import Query
from starlette.requests import Request

from shoal.client.create import named
from shoal.cluster.api.access.auth import environment_for
from shoal.cluster.api.request.answers import Json, listed
from shoal.cluster.api.request.context import Cluster, Who, context_of
from shoal.cluster.api.request.route import new_router, verb_route
from shoal.cluster.api.sandboxes.detached import seen_through
from shoal.cluster.api.schema.control import EnvironmentQuery, Sandbox, SandboxId
from shoal.cluster.api.schema.images import (
    Checkpoint,
    Collection,
    Fork,
    Forked,
    Image,
    ImageMount,
    ImageName,
    ImagePage,
    ImagePath,
    ImagePull,
    Images,
    NameText,
    Snapshot,
)
from shoal.model import verbs
from shoal.model.cursors import MAX_LENGTH, decode_cursor, encode_cursor
from shoal.model.errors import Unavailable
from shoal.model.ids import IMAGE
from shoal.model.images import ImageKind, ImageListing
from shoal.model.sandbox_json import info_to_json

router = new_router("images")


@verb_route(
    router, verbs.snapshot_filesystem, status_code=201, response_model=Image, summary="Take an image of a sandbox"
)
async def snapshot_filesystem(
    sandbox_id: SandboxId, request: Request, cluster: Cluster, body: Snapshot | None = None
) -> Json:
    """An image of the sandbox's files, as they are at one moment: its processes are frozen meanwhile, and go on. It can
    be used at once: `{"image": "<its id>"}` in a create. Only what the sandbox has changed is stored. With
    `path`: of one directory, to be mounted into others, too."""
    asked = body or Snapshot()
    made = await seen_through(
        request, cluster.ask(verbs.snapshot_filesystem, sandbox_id, asked.name, asked.ttl, asked.key, asked.path)
    )
    context_of(request).target = made.id
    return Json(made.to_dict(), 201)


@verb_route(router, verbs.mount_image, response_model=Sandbox, summary="Mount an image into a sandbox")
async def mount_image(sandbox_id: SandboxId, body: ImageMount, request: Request, cluster: Cluster) -> Json:
    """The running sandbox sees the image's files at the path. What it writes there is its own, counts for its disk, and
    is in no snapshot of its filesystem."""
    return Json(
        info_to_json(await seen_through(request, cluster.ask(verbs.mount_image, sandbox_id, body.image, body.path)))
    )


@verb_route(router, verbs.unmount_image, response_model=Sandbox, summary="Take a mounted image away")
async def unmount_image(
    sandbox_id: SandboxId,
    request: Request,
    cluster: Cluster,
    path: Annotated[str, Query(min_length=1, max_length=4095, description="Where it is mounted.")],
) -> Json:
    """What was written there goes with it. Where no image is mounted, nothing happens."""
    return Json(info_to_json(await seen_through(request, cluster.ask(verbs.unmount_image, sandbox_id, path))))


@verb_route(router, verbs.checkpoint, status_code=201, response_model=Image, summary="Take a sandbox's memory")
async def checkpoint(sandbox_id: SandboxId, request: Request, cluster: Cluster, body: Checkpoint | None = None) -> Json:
    """An image of the files and the memory of a sandbox in gVisor (`"runtime": "runsc"`), of one moment: it stands
    still meanwhile, and goes on. `{"image": "<its id>", "runtime": "runsc"}` in a create restores it, any number of
    times, on the machine that it is on. Connections to outside are cut, in both."""
    asked = body or Checkpoint()
    made = await seen_through(request, cluster.ask(verbs.checkpoint, sandbox_id, asked.ttl, asked.key))
    context_of(request).target = made.id
    return Json(made.to_dict(), 201)


@verb_route(router, verbs.fork, status_code=201, response_model=Forked, summary="Fork a sandbox")
async def fork_sandbox(sandbox_id: SandboxId, request: Request, cluster: Cluster, body: Fork | None = None) -> Json:
    """Creates sandboxes of the same spec, without its name, each with the files that this one has now, and answers once
    they run: all, or none. Its tunnels are not taken along, and only with `memory` its processes and their memory."""
    asked = body or Fork()
    key = asked.key or secrets.token_hex(16)
    try:
        forking = cluster.fork(sandbox_id, asked.count, deadline=asked.deadline, key=key, memory=asked.memory)
        made = await seen_through(request, forking)
    except Unavailable as error:
        raise named(error, key if asked.key is None else None, 'key: "{}"') from None
    return Json({"sandboxes": [info_to_json(info) for info in made]}, 201)


@verb_route(router, verbs.list_images, response_model=ImagePage, summary="List images")
async def list_images(
    who: Who,
    cluster: Cluster,
    environment: EnvironmentQuery = None,
    kind: Annotated[ImageKind | None, Query(description="Only those of this kind.")] = None,
    name: Annotated[NameText | None, Query(description="Only those of this name; without a tag: with any.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(max_length=MAX_LENGTH, description="`next_cursor` of the page before.")] = None,
) -> Json:
    """Lists images, newest first, in pages."""
    listing = ImageListing(
        environment=environment_for(who, environment),
        kind=kind,
        name=name,
        limit=limit,
        before=None if cursor is None else decode_cursor(cursor, IMAGE),
    )
    page = await cluster.ask(verbs.list_images, listing)
    more = None if page.reached is None else encode_cursor(page.reached)
    return Json({"images": [image.to_dict() for image in page.images], "next_cursor": more})


# Before all with an image in the path.
@verb_route(router, verbs.pull_image, status_code=201, response_model=Image, summary="Pull an image with credentials")
async def pull_image(body: ImagePull, request: Request, who: Who, cluster: Cluster) -> Json:
    """Pulls an image of a registry for one environment. `{"image": "<its id>"}` in a create uses it; others do not get
    it by its reference."""
    context = context_of(request)
    context.environment = environment_for(who, body.environment)
    asked = cluster.ask(verbs.pull_image, body.reference, context.environment, body.secret)
    made = await seen_through(request, asked)
    context.target = made.id
    return Json(made.to_dict(), 201)


@verb_route(router, verbs.collect_images, response_model=Images, summary="Delete images that nobody uses")
async def collect_images(body: Collection, request: Request, who: Who, cluster: Cluster) -> Json:
    """Deletes those without a name that nothing needs, and from which no sandbox was created for `unused_for` seconds;
    answers with them."""
    environment = context_of(request).environment = environment_for(who, body.environment)
    gone = await cluster.ask(verbs.collect_images, environment, body.unused_for, body.dry_run)
    return listed(verbs.collect_images, gone)


@verb_route(router, verbs.get_image, response_model=Image, summary="Look at an image")
async def get_image(image: ImagePath, who: Who, cluster: Cluster, environment: EnvironmentQuery = None) -> Json:
    """One, by its id or its name."""
    return Json((await cluster.ask(verbs.get_image, image, _owner(image, who, environment))).to_dict())


@verb_route(router, verbs.delete_image, response_model=Image, summary="Delete an image")
async def delete_image(
    image: ImagePath,
    who: Who,
    cluster: Cluster,
    environment: EnvironmentQuery = None,
    when_unused: Annotated[
        bool, Query(description="Nobody can use it from now on, and it goes once nothing needs it.")
    ] = False,
) -> Json:
    """Deletes one. 409 while sandboxes or pools need it, unless `when_unused`."""
    return Json((await cluster.ask(verbs.delete_image, image, _owner(image, who, environment), when_unused)).to_dict())


@verb_route(router, verbs.name_image, response_model=Image, summary="Name an image")
async def name_image(image: ImagePath, body: ImageName, who: Who, cluster: Cluster) -> Json:
    """Gives it another name, which another image may have had until now, or none."""
    owner = _owner(image, who, body.environment)
    return Json((await cluster.ask(verbs.name_image, image, owner, body.name)).to_dict())


def _owner(image: str, who: Who, environment: str | None) -> str | None:
    """The environment in which a name is looked up; an id needs none."""
    return environment_for(who, environment) if environment is not None or not IMAGE.fullmatch(image) else None
