"""Routes of tokens, environments and their quotas, the audit log, defaults and nodes."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query
from starlette.requests import Request
from starlette.responses import Response

from shoal.cluster.api.access.auth import Reader, environment_for
from shoal.cluster.api.request.answers import Json, listed
from shoal.cluster.api.request.context import Cluster, Who, context_of
from shoal.cluster.api.request.route import new_router, verb_route
from shoal.cluster.api.schema.administration import (
    Audit,
    EnvironmentCreate,
    EnvironmentModel,
    Environments,
    NewCordon,
    NewDrain,
    NewToken,
    Node,
    NodeDrain,
    NodeId,
    Nodes,
    QuotaModel,
    Token,
    TokenCreate,
    Tokens,
)
from shoal.model import verbs
from shoal.model.access import ANY_ENVIRONMENT, TokenInfo
from shoal.model.errors import PermissionDenied
from shoal.model.ids import NAME
from shoal.model.settings import SandboxDefaults
from shoal.model.visibility import no_token

TokenId = Annotated[str, Path(max_length=64, examples=["tk-2fq7c3j5kx6n4a7b"])]
Name = Annotated[str, Path(max_length=64, pattern=f"^{NAME.pattern}$", examples=["team-a"])]

router = new_router("administration")


# Tokens


@verb_route(
    router,
    verbs.create_token,
    status_code=201,
    response_model=NewToken,
    summary="Make a token",
)
async def create_token(body: TokenCreate, request: Request, who: Who, cluster: Cluster) -> Json:
    """Makes a token and returns its text, this once: only its digest is kept."""
    context = context_of(request)
    if body.environment == ANY_ENVIRONMENT:
        if who.environment != ANY_ENVIRONMENT:
            raise PermissionDenied("environment: a token of one environment makes none of all ('*')")
        environment = ANY_ENVIRONMENT
    else:
        environment = environment_for(who, body.environment)
    context.environment = environment
    info, text = await cluster.ask(verbs.create_token, body.name, environment, body.scope, body.expires_in)
    context.target = info.id
    return Json({**info.to_dict(), "token": text}, 201, {"Cache-Control": "no-store"})


@verb_route(router, verbs.tokens, response_model=Tokens, summary="List tokens")
async def list_tokens(cluster: Cluster) -> Json:
    """The tokens of the caller's environment, or of all, newest first, including revoked and expired ones."""
    return listed(verbs.tokens, await cluster.ask(verbs.tokens))


@router.get("/v1/tokens/self", response_model=Token, summary="Look at the token in use")
async def get_own_token(request: Request, who: Reader) -> Json:
    """The token of this request. If authentication is off, a token `cluster` that stands for that."""
    stored = await request.app.state.tokens.get(who.token) if request.app.state.settings.api.auth else None
    if stored is not None:
        return Json(stored.info.to_dict())
    return Json(TokenInfo(who.token, "authentication is off", who.environment, who.scope, 0.0).to_dict())


@verb_route(
    router,
    verbs.revoke_token,
    response_model=Token,
    summary="Revoke a token",
)
async def revoke_token(token_id: TokenId, request: Request, cluster: Cluster) -> Json:
    """From now on the token is refused: by this replica at once, by others within seconds."""
    if "\0" in token_id:
        raise no_token(token_id)
    info = await cluster.ask(verbs.revoke_token, token_id)
    request.app.state.tokens.forget(token_id)
    return Json(info.to_dict())


# Environments


@verb_route(
    router,
    verbs.create_environment,
    status_code=201,
    response_model=EnvironmentModel,
    summary="Make an environment",
)
async def create_environment(body: EnvironmentCreate, request: Request, cluster: Cluster) -> Json:
    """A new namespace, with a quota of its own."""
    context_of(request).target = body.name
    return Json((await cluster.ask(verbs.create_environment, body.name, body.quota.quota())).to_dict(), 201)


@verb_route(router, verbs.environments, response_model=Environments, summary="List environments")
async def list_environments(cluster: Cluster) -> Json:
    """The environments that the token may see, by name, with their use."""
    return listed(verbs.environments, await cluster.ask(verbs.environments))


@verb_route(router, verbs.environment, response_model=EnvironmentModel, summary="Look at an environment")
async def get_environment(name: Name, who: Who, cluster: Cluster) -> Json:
    """Its quota, and the use of its living sandboxes."""
    return Json((await cluster.ask(verbs.environment, environment_for(who, name))).to_dict())


@verb_route(
    router,
    verbs.set_quota,
    response_model=EnvironmentModel,
    summary="Replace an environment's quota",
)
async def set_quota(name: Name, body: QuotaModel, cluster: Cluster) -> Json:
    """Sandboxes beyond the new quota live on; new ones wait for room under it."""
    return Json((await cluster.ask(verbs.set_quota, name, body.quota())).to_dict())


@verb_route(
    router,
    verbs.delete_environment,
    status_code=204,
    response_class=Response,
    summary="Delete an environment",
)
async def delete_environment(name: Name, cluster: Cluster) -> Response:
    """Revokes its tokens, too. Refused while sandboxes live in it, and for `main`. Its name is free again once its
    history has expired."""
    await cluster.ask(verbs.delete_environment, name)
    return Response(status_code=204)


# The cluster


@verb_route(router, verbs.audit, response_model=Audit, summary="Read the audit log")
async def list_audit(
    cluster: Cluster,
    before: Annotated[int | None, Query(ge=1, lt=1 << 63, description="Only entries with an id below this.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Json:
    """Who did what, or was refused it, newest first, in the caller's environment or in all environments."""
    return listed(verbs.audit, await cluster.ask(verbs.audit, before, limit))


@verb_route(router, verbs.defaults, response_model=SandboxDefaults, summary="What a sandbox gets by default")
async def get_defaults(cluster: Cluster) -> Json:
    """What a sandbox gets if its create does not say."""
    return Json(await cluster.ask(verbs.defaults))


@verb_route(router, verbs.nodes, response_model=Nodes, summary="List nodes")
async def list_nodes(cluster: Cluster) -> Json:
    """The machines of the cluster: what they have, and what is free."""
    return listed(verbs.nodes, await cluster.ask(verbs.nodes))


@verb_route(router, verbs.cordon, response_model=Node, summary="Cordon a node")
async def cordon_node(node: NodeId, body: NewCordon, cluster: Cluster) -> Json:
    """No new sandbox starts on it from now on; what runs there goes on."""
    return Json((await cluster.ask(verbs.cordon, node, body.why)).to_dict())


@verb_route(router, verbs.uncordon, response_model=Node, summary="Uncordon a node")
async def uncordon_node(node: NodeId, cluster: Cluster) -> Json:
    """Sandboxes may start on it again."""
    return Json((await cluster.ask(verbs.uncordon, node)).to_dict())


@verb_route(router, verbs.drain_node, response_model=NodeDrain, summary="Empty a node and take it out")
async def drain_node(node: NodeId, body: NewDrain, cluster: Cluster) -> Json:
    """Cordons it, waits until no sandbox runs there, and has it leave the cluster. Ask again until `left` is true."""
    return Json((await cluster.ask(verbs.drain_node, node, body.why, body.force, body.timeout)).to_dict())
