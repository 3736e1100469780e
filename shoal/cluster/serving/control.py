"""Starting, rolling and looking at the API through Serve, from a process that is connected to Ray. All calls block."""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation

from shoal.cluster.serving.deployment import APPLICATION, application
from shoal.model.access import ANY_ENVIRONMENT, Scope
from shoal.model.errors import Unavailable
from shoal.transport.ray import RayTransport

FIRST_TOKEN = "shoal up"
"""The name of the token that the operator of this machine gets."""

_KEEP_ALIVE_S = 75


def start(settings: dict[str, Any], host: str, port: int) -> None:
    """Makes sure that Serve runs and deploys the API; replicas that are there are replaced one after the other, with what they do
    taken to its end. Returns once they take requests. `host`: what replicas listen on, `port`: HAProxy's."""
    serve.start(ProxyLocation.HeadOnly, HTTPOptions(host=host, port=port, keep_alive_timeout_s=_KEEP_ALIVE_S))
    try:
        serve.run(application(settings), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise Unavailable(f"the API does not start: {error}; see the logs of Serve in Ray's session") from None


def stop() -> None:
    """Ends the API and all of Serve. Nothing happens where it does not run."""
    serve.shutdown()  # type: ignore[no-untyped-call]


def make_token() -> str:
    """The text of a new token that may do everything, in place of the one that an earlier call made."""

    async def make() -> str:
        transport = await RayTransport.open()
        try:
            for token in await transport.admin.tokens():
                if token.name == FIRST_TOKEN and token.revoked_at is None:
                    await transport.admin.revoke_token(token.id)
            _, text = await transport.admin.create_token(FIRST_TOKEN, ANY_ENVIRONMENT, Scope.ADMIN, None)
        finally:
            await transport.close()
        return text

    return asyncio.run(make())
