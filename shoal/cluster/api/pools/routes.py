"""Routes of pools: make, list, look at, resize and delete them, and take a sandbox from one."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from shoal.client.create import named
from shoal.cluster.api.access.audit import audited
from shoal.cluster.api.access.auth import environment_for, environment_to_list, needs
from shoal.cluster.api.request.answers import Json, listed
from shoal.cluster.api.request.context import Cluster, Who, context_of
from shoal.cluster.api.request.route import LargeRoute, new_router, verb_route
from shoal.cluster.api.sandboxes.detached import seen_through
from shoal.cluster.api.sandboxes.dev_image import with_dev_image
from shoal.cluster.api.sandboxes.routes import KEY_AS_GIVEN, IdempotencyKey
from shoal.cluster.api.schema.control import Deadline, EnvironmentQuery, Sandbox
from shoal.cluster.api.schema.pools import Pool, PoolCreate, PoolName, Pools, PoolSize, Taking
from shoal.model import verbs
from shoal.model.access import Scope
from shoal.model.errors import Unavailable
from shoal.model.sandbox_json import info_to_json

router = new_router("pools", LargeRoute)


@verb_route(router, verbs.create_pool, status_code=201, response_model=Pool, summary="Make a pool")
async def create_pool(body: PoolCreate, request: Request, who: Who, cluster: Cluster) -> Json:
    """Keeps sandboxes of a spec ready from now on. A create that asks for the same takes one by itself. The same
    request again gives the same pool."""
    context = context_of(request)
    context.environment = environment_for(who, body.spec.environment)
    context.target = body.name
    spec = await with_dev_image(body.spec.spec(await cluster.defaults(), context.environment, None), cluster)
    made = await cluster.ask(verbs.create_pool, body.name, spec, body.min_ready, body.max_ready, body.replace)
    return Json(made.to_dict(), 201)


@verb_route(router, verbs.pools, response_model=Pools, summary="List pools")
async def list_pools(who: Who, cluster: Cluster, environment: EnvironmentQuery = None) -> Json:
    """The pools of an environment; of all that the token may see, if none is named."""
    wanted = environment_to_list(who, environment)
    return listed(verbs.pools, await cluster.ask(verbs.pools, wanted))


@verb_route(router, verbs.pool, response_model=Pool, summary="Look at a pool")
async def get_pool(name: PoolName, who: Who, cluster: Cluster, environment: EnvironmentQuery = None) -> Json:
    """Its spec, its size, and what there is of it."""
    return Json((await cluster.ask(verbs.pool, name, environment_for(who, environment))).to_dict())


@verb_route(router, verbs.resize_pool, response_model=Pool, summary="Resize a pool")
async def resize_pool(name: PoolName, body: PoolSize, request: Request, who: Who, cluster: Cluster) -> Json:
    """Changes how many it keeps ready; those beyond `max_ready` end."""
    environment = context_of(request).environment = environment_for(who, body.environment)
    return Json((await cluster.ask(verbs.resize_pool, name, environment, body.min_ready, body.max_ready)).to_dict())


@verb_route(router, verbs.delete_pool, status_code=204, response_class=Response, summary="Delete a pool")
async def delete_pool(
    name: PoolName, request: Request, who: Who, cluster: Cluster, environment: EnvironmentQuery = None
) -> Response:
    """What is ready of it ends; sandboxes that were taken from it live on."""
    owner = context_of(request).environment = environment_for(who, environment)
    await cluster.ask(verbs.delete_pool, name, owner)
    return Response(status_code=204)


@router.post(
    "/v1/pools/{name}/take",
    status_code=201,
    response_model=Sandbox,
    dependencies=[needs(Scope.RUN), audited("sandbox.create")],
    summary="Take a sandbox from a pool",
)
async def take_sandbox(
    name: PoolName,
    body: Taking,
    request: Request,
    who: Who,
    cluster: Cluster,
    environment: EnvironmentQuery = None,
    deadline: Annotated[Deadline, Query(description="Seconds for that; then nothing is left of it.")] = 300.0,
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """As a create of the pool's spec with what the body says: at once if one is ready, else as soon as one is made."""
    context = context_of(request)
    context.environment = environment_for(who, environment)
    pool = await cluster.ask(verbs.pool, name, context.environment)
    key = idempotency_key or secrets.token_hex(16)
    try:
        info = await seen_through(request, cluster.create(body.spec(pool, key), deadline=deadline))
    except Unavailable as error:
        raise named(error, key if idempotency_key is None else None, KEY_AS_GIVEN) from None
    context.target = info.id
    return Json(info_to_json(info), 201)
