"""Routes of secrets: store, list, look at, delete them, and encrypt them anew. None tells a value."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from shoal.cluster.api.access.auth import environment_for, environment_to_list
from shoal.cluster.api.request.answers import Json, listed
from shoal.cluster.api.request.context import Cluster, Who, context_of
from shoal.cluster.api.request.route import new_router, verb_route
from shoal.cluster.api.schema.control import EnvironmentQuery
from shoal.cluster.api.schema.secrets import Secret, SecretCreate, SecretName, Secrets
from shoal.model import verbs

router = new_router("secrets")


@verb_route(router, verbs.create_secret, status_code=201, response_model=Secret, summary="Store a secret")
async def create_secret(body: SecretCreate, request: Request, who: Who, cluster: Cluster) -> Json:
    """Stores values by a name, encrypted. Sandboxes get them; no request reads them back."""
    context = context_of(request)
    context.environment = environment_for(who, body.environment)
    context.target = body.name
    made = await cluster.ask(verbs.create_secret, body.name, body.given(), context.environment, body.replace)
    return Json(made.to_dict(), 201)


@verb_route(router, verbs.secrets, response_model=Secrets, summary="List secrets")
async def list_secrets(who: Who, cluster: Cluster, environment: EnvironmentQuery = None) -> Json:
    """The secrets of an environment; of all that the token may see, if none is named."""
    wanted = environment_to_list(who, environment)
    return listed(verbs.secrets, await cluster.ask(verbs.secrets, wanted))


# Before all with a name in the path.
@verb_route(router, verbs.rotate_secrets, response_model=Secrets, summary="Encrypt all secrets anew")
async def rotate_secrets(cluster: Cluster) -> Json:
    """With a new key, those of living sandboxes too. Old keys still decrypt."""
    return listed(verbs.rotate_secrets, await cluster.ask(verbs.rotate_secrets))


@verb_route(router, verbs.secret, response_model=Secret, summary="Look at a secret")
async def get_secret(name: SecretName, who: Who, cluster: Cluster, environment: EnvironmentQuery = None) -> Json:
    """Its keys and times, not its values."""
    return Json((await cluster.ask(verbs.secret, name, environment_for(who, environment))).to_dict())


@verb_route(router, verbs.delete_secret, status_code=204, response_class=Response, summary="Delete a secret")
async def delete_secret(
    name: SecretName, request: Request, who: Who, cluster: Cluster, environment: EnvironmentQuery = None
) -> Response:
    """Sandboxes that run keep its values."""
    owner = context_of(request).environment = environment_for(who, environment)
    await cluster.ask(verbs.delete_secret, name, owner)
    return Response(status_code=204)
