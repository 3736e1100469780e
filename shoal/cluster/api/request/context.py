"""What is known of the request being answered, and what every route may ask the application for.

A request's context is in its ASGI scope and in a context variable, so that log lines find its id. The `frame` makes it, `auth` fills in who
calls, routes say what they do (`audited`), and once all is over the frame writes it down.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends, params
from starlette.requests import HTTPConnection

from shoal.model.access import Caller, Scope
from shoal.transport.admin import ReplicaSide
from shoal.transport.contract import Transport

if TYPE_CHECKING:
    from shoal.cluster.api.access.usage_reporter import Ledger

SCOPE_KEY = "shoal.context"

NOBODY = Caller(token="-", environment="-", scope=Scope.READ)
"""Who calls until a token has said so: one who sees no environment at all."""


@dataclass(slots=True)
class RequestContext:
    """One request, from its first byte to its last. `outcome`: `ok` or an error's code."""

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


current: ContextVar[RequestContext | None] = ContextVar("shoal_request", default=None)


class RequestIdFilter(logging.Filter):
    """Gives each record the `request_id` of the request that it is about, `-` outside of any. Belongs on handlers."""

    def filter(self, record: logging.LogRecord) -> bool:
        context = current.get()
        record.request_id = "-" if context is None else context.request_id
        return True


def context_of(connection: HTTPConnection) -> RequestContext:
    """The context of a request or WebSocket."""
    return cast(RequestContext, connection.scope[SCOPE_KEY])


# Dependencies. All are coroutines: FastAPI runs others in a thread pool.


async def get_transport(connection: HTTPConnection) -> Transport:
    """The way to the cluster."""
    return cast(Transport, connection.app.state.transport)


Cluster = Annotated[Transport, Depends(get_transport)]


async def get_replica_side(connection: HTTPConnection) -> ReplicaSide:
    """What only replicas ask of the cluster."""
    return cast(ReplicaSide, connection.app.state.replica_side)


async def get_ledger(connection: HTTPConnection) -> Ledger:
    """Where this replica counts, and notes what is for the audit log."""
    return cast("Ledger", connection.app.state.ledger)


class Audited:
    """Marks a route whose use is entered in the audit log, refused or not: see `audited`."""

    def __init__(self, action: str, target: str | None) -> None:
        self.action = action
        self.target = target

    def begin(self, connection: HTTPConnection) -> None:
        """Says what the request is about."""
        context = context_of(connection)
        context.action = self.action
        if self.target is not None:
            context.target = connection.path_params.get(self.target)

    async def __call__(self, connection: HTTPConnection) -> None:
        if connection.scope["type"] == "websocket":
            self.begin(connection)
            settle(connection)


class Counted:
    """Counts a route's uses by a name of their own: see `counted`."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def __call__(self, connection: HTTPConnection) -> None:
        context_of(connection).counter = self.name
        settle(connection)


def settle(connection: HTTPConnection) -> None:
    """Once the caller is let in, whichever of the dependencies comes first: counts, and enters a WebSocket in the audit log.

    That may last for days: it is noted as it begins, not once it is over.
    """
    context = context_of(connection)
    ledger: Ledger = connection.app.state.ledger
    if not context.admitted:
        return
    if context.counter is not None:
        ledger.add(context.counter, 1)
        context.counter = None
    if context.action is not None and connection.scope["type"] == "websocket":
        ledger.note(context)
        context.action = None


def audited(action: str, target: str | None = "sandbox_id") -> params.Depends:
    """A dependency: the route's use goes into the audit log as `action`, on what its path parameter `target` names.

    An HTTP request is entered once it is answered, with its outcome; a WebSocket when it is let in.
    """
    return params.Depends(Audited(action, target))


def counted(name: str) -> params.Depends:
    """A dependency: the route's use adds 1 to the counter `name`, such as `shoal_execs_total`."""
    return params.Depends(Counted(name))
