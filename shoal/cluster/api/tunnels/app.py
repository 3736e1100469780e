"""Tunnels: HTTP and WebSockets from outside to a port in a sandbox, over the connection that its node's relay and its agent carry.

An ASGI application around the API's own: what is asked of a tunnel, by path or by host name, it answers, all else it hands on.

    tunnel_visits    what a request wants, and what of it goes on           (pure)
    tunnel_access    who may
    tunnel_http      one request carried there and its answer back
    tunnel_sockets   the same for a WebSocket
    tunnel_answers   the answer made fit for the client                     (pure)
    tunnel_pages     what we say ourselves                                  (pure)
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import cast

from starlette.types import ASGIApp

from shoal.cluster.api.access.auth import TokenCache
from shoal.cluster.api.access.usage_reporter import UsageReporter
from shoal.cluster.api.processes.websockets import left, taken
from shoal.cluster.api.request.context import SCOPE_KEY, RequestContext
from shoal.cluster.api.tunnels.tunnel_access import Admission, Door
from shoal.cluster.api.tunnels.tunnel_answers import response_headers, socket_headers
from shoal.cluster.api.tunnels.tunnel_http import Broken, Carrier, Receive, Send, Way
from shoal.cluster.api.tunnels.tunnel_pages import cookie_redirect, error_answer, nothing_listens, slash_redirect
from shoal.cluster.api.tunnels.tunnel_sockets import Denied, SocketCarrier, denial
from shoal.cluster.api.tunnels.tunnel_visits import Headers, Scope, Visit, visit_of
from shoal.model import verbs
from shoal.model.access import INSIDE, caller
from shoal.model.errors import ShoalError, Unavailable
from shoal.model.settings import ApiSettings
from shoal.transport.contract import Transport
from shoal.wire.bytestream import ByteStream

_log = logging.getLogger("shoal.api.tunnels")
_POLICY_VIOLATION = 1008


@dataclass(frozen=True, slots=True)
class _Route:
    """What the log and the figures call a request of a tunnel, whatever its path."""

    path: str = "/t"


class Tunnels:
    """The ASGI application: inside the API's frame, which knows requests by their ids, and around all of its routes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        transport: Transport,
        tokens: TokenCache,
        reporter: UsageReporter,
        api: ApiSettings,
    ) -> None:
        self._app = app
        self._transport = transport
        self._door = Door(transport, lambda: transport.ask(verbs.tunnel_secret), tokens, reporter)
        self._domain = api.tunnel_domain
        self._public_scheme = None if api.url is None else api.url.partition(":")[0]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        visit = None
        if scope["type"] in ("http", "websocket"):
            visit = visit_of(scope, self._domain, self._public_scheme)
        if visit is None:
            await self._app(scope, receive, send)
            return
        context = cast(RequestContext, scope[SCOPE_KEY])
        scope["route"] = _Route()
        if visit.websocket:
            await receive()  # `websocket.connect`
        try:
            await self._serve(visit, scope, receive, send)
        except Broken as error:
            context.outcome = "broken_off"  # the answer is left unfinished, which clients notice
            _log.info("an answer of port %d in %s broke off: %s", visit.target.port, visit.target.sandbox_id, error)
        except Denied as denied:
            status, headers, body = denial(denied)
            await _deny(scope, send, status, self._fit(headers, visit), body)
        except ShoalError as error:
            context.outcome = error.code
            await _answer(scope, send, *error_answer(error, visit, context.request_id))

    async def _serve(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        context = cast(RequestContext, scope[SCOPE_KEY])
        context.target = visit.target.sandbox_id
        caller.set(INSIDE)  # who may pass is decided at the door, and then the replica itself goes
        admission = await self._door.admit(visit)
        context.caller = admission.caller
        ready = _sent_on(visit, admission)
        if ready is not None:
            await _respond(send, *ready)
            return
        fit = partial(socket_headers, visit=visit) if visit.websocket else partial(self._fit, visit=visit)
        check, gone = partial(self._door.guard, visit, admission), partial(left, scope)
        stream = await self._dial(visit)
        try:
            way = Way(visit, stream, receive, send, fit, check, gone, taken(scope))
            await (SocketCarrier(way) if visit.websocket else Carrier(way)).carry()
        finally:
            await stream.close()

    async def _dial(self, visit: Visit) -> ByteStream:
        try:
            return await self._transport.dial(visit.target.sandbox_id, visit.target.port)
        except Unavailable as error:
            # With the port it is the sandbox's own word; else something on the way there is missing.
            raise nothing_listens(visit) if "port" in error.fields else error from None

    def _fit(self, headers: Headers, visit: Visit) -> Headers:
        return response_headers(headers, visit, confine=self._domain is not None)


def _sent_on(visit: Visit, admission: Admission) -> tuple[int, Headers, bytes] | None:
    """The redirect for a browser that came with a token in the URL, or without the slash; None for all others."""
    if visit.websocket:
        return None
    by_link = visit.offered.query is not None and visit.method in ("GET", "HEAD")
    if by_link and admission.token is not None and admission.expires is not None:
        return cookie_redirect(visit, admission.token, max(1, int(admission.expires - time.time())))
    return slash_redirect(visit) if visit.no_slash else None


async def _answer(scope: Scope, send: Send, status: int, headers: Headers, body: bytes) -> None:
    if scope["type"] == "websocket":
        await _deny(scope, send, status, headers, body)
    else:
        await _respond(send, status, headers, b"" if scope["method"] == "HEAD" else body)


async def _respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _deny(scope: Scope, send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Refuses a WebSocket before it is one: with an answer, where what serves us can send one."""
    if "websocket.http.response" in (scope.get("extensions") or {}):
        await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": body})
    else:
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": ""})
