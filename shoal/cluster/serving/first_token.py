"""The token with which the operator of a machine calls its API."""

from __future__ import annotations

import asyncio
import time

from shoal.model import verbs
from shoal.model.access import ANY_ENVIRONMENT, Scope, matches, split
from shoal.transport.contract import Transport
from shoal.transport.ray import RayTransport

NAME = "shoal up"


def first_token(known: str | None) -> str:
    """`known`, the operator's own, while it is good.

    Else a new one that may do everything, in place of the one that an earlier call made.

    For a process that is connected to Ray: the cluster is asked, not the API, which may be what is being mended.
    """

    async def ask() -> str:
        transport = await RayTransport.open()
        try:
            return await choose(known, transport)
        finally:
            await transport.close()

    return asyncio.run(ask())


async def choose(known: str | None, transport: Transport) -> str:
    """As `first_token`, through a transport."""
    parts = split(known) if known is not None else None
    if known is not None and parts is not None:
        stored = await transport.ask(verbs.stored_token, parts[0])
        if stored is not None and matches(stored, parts[1]) and stored.info.valid(time.time()):
            return known
    for earlier in await transport.ask(verbs.tokens):
        if earlier.name == NAME and earlier.revoked_at is None:
            await transport.ask(verbs.revoke_token, earlier.id)
    _, text = await transport.ask(verbs.create_token, NAME, ANY_ENVIRONMENT, Scope.ADMIN, None)
    return text
