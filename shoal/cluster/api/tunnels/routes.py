"""The routes that open, list and close tunnels. What goes through tunnels is elsewhere: `tunnels`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from shoal.cluster.api.request.answers import Json, listed
from shoal.cluster.api.request.context import Cluster
from shoal.cluster.api.request.route import new_router, verb_route
from shoal.cluster.api.schema.control import SandboxId
from shoal.model import verbs

PortPath = Annotated[int, Path(ge=1, le=65535, description="A port in the sandbox.", examples=[8080])]

_LONGEST_S = 7 * 86400.0
_SECRET = {"cache-control": "no-store"}

_SENT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class TunnelCreate(BaseModel):
    """A tunnel to open."""

    model_config = _SENT

    port: Annotated[int, Field(ge=1, le=65535, examples=[8080])]
    """The port in the sandbox"""
    protocol: Literal["http", "tcp"] = "http"
    """`http` includes WebSockets and gives a URL, `tcp` gives an address"""
    public: bool = False
    """Open to everybody; else a connect token is needed"""


class ConnectToken(BaseModel):
    """A connect token to make."""

    model_config = _SENT

    expires_in: Annotated[float, Field(gt=0, le=_LONGEST_S)] = 3600.0
    """Seconds until it expires"""


class TunnelModel(BaseModel):
    """A way in from outside to a port in a sandbox."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    sandbox_id: str
    port: int
    protocol: Literal["http", "tcp"]
    public: bool
    url: str | None
    """Of an `http` tunnel"""
    address: str | None
    """Of a `tcp` tunnel, `host:port`"""
    token: str | None
    """Of a private tunnel, if it was just made: send it as the header `X-Shoal-Connect-Token` or as `?shoal_token=`,
    over `tcp` as the first line"""
    expires_at: float | None
    """When the token expires, in unix seconds"""


class Tunnels(BaseModel):
    """A sandbox's tunnels by port, without tokens."""

    tunnels: Sequence[TunnelModel]


router = new_router("tunnels")


@verb_route(
    router,
    verbs.expose,
    status_code=201,
    response_model=TunnelModel,
    summary="Open a tunnel",
)
async def expose(sandbox_id: SandboxId, body: TunnelCreate, cluster: Cluster) -> Json:
    """Opens a tunnel to a port. A private one comes with a token. The same port again: the same tunnel, changed as
    asked."""
    tunnel = await cluster.ask(verbs.expose, sandbox_id, body.port, body.protocol, body.public)
    return Json(tunnel.to_dict(), 201, _SECRET)


@verb_route(router, verbs.tunnels, response_model=Tunnels, summary="List a sandbox's tunnels")
async def list_tunnels(sandbox_id: SandboxId, cluster: Cluster) -> Json:
    """Its tunnels by port, without tokens."""
    return listed(verbs.tunnels, await cluster.ask(verbs.tunnels, sandbox_id))


@verb_route(
    router,
    verbs.unexpose,
    status_code=204,
    response_class=Response,
    summary="Close a tunnel",
)
async def unexpose(sandbox_id: SandboxId, port: PortPath, cluster: Cluster) -> Response:
    """Closes the tunnel to a port. If the port has none, nothing happens."""
    await cluster.ask(verbs.unexpose, sandbox_id, port)
    return Response(status_code=204)


@verb_route(
    router,
    verbs.tunnel_token,
    response_model=TunnelModel,
    summary="Make a connect token",
)
async def connect_token(sandbox_id: SandboxId, port: PortPath, body: ConnectToken, cluster: Cluster) -> Json:
    """The tunnel to a port, with a connect token to pass on."""
    tunnel = await cluster.ask(verbs.tunnel_token, sandbox_id, port, body.expires_in)
    return Json(tunnel.to_dict(), headers=_SECRET)
