"""Routes of builds of images: start one, look at it, follow its log, and send the files that it needs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query
from starlette.requests import Request
from starlette.responses import Response

from shoal.cluster.api.access.auth import environment_for, environment_to_list, needs
from shoal.cluster.api.request.answers import Json, listed
from shoal.cluster.api.request.bodies import streamed
from shoal.cluster.api.request.context import Cluster, Who, context_of
from shoal.cluster.api.request.route import LargeRoute, new_router, verb_route
from shoal.cluster.api.request.streaming import OCTETS
from shoal.cluster.api.schema.builds import (
    Build,
    BuildCreate,
    BuildId,
    BuildLog,
    Builds,
    Digest,
    ImagePush,
    LogWait,
    Pushed,
)
from shoal.cluster.api.schema.control import EnvironmentQuery
from shoal.model import verbs
from shoal.model.access import Scope
from shoal.model.builds import PIECE
from shoal.model.errors import InvalidRequest
from shoal.model.ids import IMAGE
from shoal.model.recipe import MOST_FILES_BYTES

router = new_router("images", LargeRoute)

_Image = Annotated[
    str,
    Path(min_length=1, max_length=255, description="The image's id, or its name.", examples=["im-2fq7c3j5kx6n4a7b"]),
]
_Bytes = Annotated[int, Query(ge=0, le=MOST_FILES_BYTES)]


@verb_route(router, verbs.push_image, response_model=Pushed, summary="Push an image")
async def push_image(image: _Image, body: ImagePush, request: Request, who: Who, cluster: Cluster) -> Json:
    """Sends an image of the cluster to a registry, with the credentials that its node has for that."""
    owner = None
    if body.environment is not None or not IMAGE.fullmatch(image):
        owner = context_of(request).environment = environment_for(who, body.environment)
    return Json((await cluster.ask(verbs.push_image, image, owner, body.reference)).to_dict())


@verb_route(router, verbs.build_image, status_code=201, response_model=Build, summary="Build an image")
async def build_image(body: BuildCreate, request: Request, who: Who, cluster: Cluster) -> Json:
    """Builds an image, or finds it built. Goes on whatever becomes of the client; all who ask for the same at the same
    time get one build."""
    environment = context_of(request).environment = environment_for(who, body.environment)
    recipe, options = body.parsed()
    return Json((await cluster.ask(verbs.build_image, recipe, environment, options)).to_dict(), 201)


@verb_route(router, verbs.builds, response_model=Builds, summary="List builds")
async def list_builds(who: Who, cluster: Cluster, environment: EnvironmentQuery = None) -> Json:
    """The builds that run and the last ones that ended, of an environment or of all that the token may see. They are
    forgotten with the builder, which is started anew when it fails."""
    wanted = environment_to_list(who, environment)
    return listed(verbs.builds, await cluster.ask(verbs.builds, wanted))


@verb_route(router, verbs.get_build, response_model=Build, summary="Look at a build")
async def get_build(build_id: BuildId, cluster: Cluster) -> Json:
    """How it stands. 404, too, where the builder was started anew since: ask for the build again."""
    return Json((await cluster.ask(verbs.get_build, build_id)).to_dict())


@verb_route(router, verbs.build_log, response_model=BuildLog, summary="Follow a build's log")
async def get_build_log(
    build_id: BuildId,
    cluster: Cluster,
    offset: Annotated[int, Query(ge=0, le=1 << 53)] = 0,
    wait: Annotated[LogWait, Query(description="Seconds to wait for more, or for its end.")] = 0.0,
) -> Json:
    """Its log from an offset on, and how it stands. It is all told once the state is `done` or `failed` and there is no
    more text."""
    return Json((await cluster.ask(verbs.build_log, build_id, offset, wait)).to_dict())


@router.put(
    "/v1/images/builds/files/{digest}",
    status_code=204,
    response_class=Response,
    openapi_extra={"requestBody": {"content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}}}},
    dependencies=[needs(Scope.RUN)],
    summary="Send files for a build",
)
async def put_build_files(digest: Digest, request: Request, size: _Bytes, offset: _Bytes, cluster: Cluster) -> Response:
    """A piece, of at most 4 MiB, of the tar archive with this digest and size. With the last one, the whole is
    checked."""
    pieces, length = [], 0
    async for piece in streamed(request):
        pieces.append(piece)
        length += len(piece)
        if length > PIECE:
            raise InvalidRequest(f"body: it has more than {PIECE:,} bytes; send it in pieces", field="body")
    await cluster.ask(verbs.put_build_files, digest, size, offset, b"".join(pieces))
    return Response(status_code=204)
