"""What is known of the request being answered, and what every route may ask the application for.

A request's context is in its ASGI scope. The middleware makes it, `auth` fills in who calls, routes say what they do
(`audited`), and the middleware writes it down once the request is over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from shoal.model.access import Caller, Scope
from shoal.transport.contract import Transport

SCOPE_KEY = "shoal.context"

NOBODY = Caller(token="-", environment="-", scope=Scope.READ)
"""Who calls until a token has said so: one who sees no environment at all."""


@dataclass(slots=True)
class RequestContext:
    """One request, from its first byte to its last. `outcome`: `ok` or an error's code; `command_s`: of an exec, the
    seconds that the command itself took."""

    request_id: str
    address: str | None = None
    caller: Caller = field(default=NOBODY)
    action: str | None = None
    target: str | None = None
    environment: str | None = None
    outcome: str = "ok"
    authenticated: bool = False
    admitted: bool = False
    """`authenticated`: who calls is known; `admitted`: and may do this."""
    counter: str | None = None
    command_s: float | None = None


def context_of(connection: HTTPConnection) -> RequestContext:
    """The context of a request or WebSocket."""
    return cast(RequestContext, connection.scope[SCOPE_KEY])


# Dependencies. All are coroutines: FastAPI runs others in a thread pool.


async def get_transport(connection: HTTPConnection) -> Transport:
    """The way to the cluster."""
    return cast(Transport, connection.app.state.transport)


Cluster = Annotated[Transport, Depends(get_transport)]


async def get_caller(connection: HTTPConnection) -> Caller:
    """Who calls, once the route has let them in."""
    return context_of(connection).caller


Who = Annotated[Caller, Depends(get_caller)]
