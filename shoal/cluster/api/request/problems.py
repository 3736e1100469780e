"""Every error as a problem document, whatever raised it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.websockets import WebSocket, WebSocketState

from shoal.cluster.api.request.context import context_of
from shoal.model.errors import (
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ShoalError,
    Unauthenticated,
    Unavailable,
)
from shoal.model.http import PROBLEM, problem, status_of
from shoal.model.invalid import invalid_request


class Refused(InvalidRequest):
    """An invalid request for which HTTP has its own status; clients see an `InvalidRequest`.

    413 (too large), 415 (not JSON), 416 (no such range), 405 (method).
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.status = status
        self.headers = headers or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return InvalidRequest, (self.message,)


def document(error: ShoalError, request_id: str | None = None) -> dict[str, Any]:
    """The problem document for an error, JSON-ready."""
    data = problem(error, request_id)
    if isinstance(error, Refused):
        data["status"] = error.status
        data["title"] = HTTPStatus(error.status).phrase
    return data


def answer(error: ShoalError, request_id: str | None) -> Response:
    """The response for an error."""
    data = document(error, request_id)
    headers = dict(error.headers) if isinstance(error, Refused) else {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="shoal"'
    after = error.fields.get("retry_after")
    if data["status"] == 429 or (isinstance(error, Unavailable) and error.retryable):
        headers["Retry-After"] = str(max(1, math.ceil(after)) if isinstance(after, int | float) else 1)
    return Response(to_json(data), data["status"], headers, PROBLEM)


def from_http(error: HTTPException) -> ShoalError:
    """Shoal's error for one that the framework raised."""
    status, detail = error.status_code, str(error.detail)
    if status == 404:
        return NotFound("there is nothing at this address; see /docs for what there is")
    if status == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return Refused(405, f"the method is not allowed here; use {allowed}", dict(error.headers or {}))
    kinds: dict[int, type[ShoalError]] = {401: Unauthenticated, 403: PermissionDenied, 409: FailedPrecondition}
    if kind := kinds.get(status):
        return kind(detail)
    return InvalidRequest(detail) if status == 400 else Refused(status, detail, dict(error.headers or {}))


def from_validation(error: RequestValidationError | WebSocketRequestValidationError) -> InvalidRequest:
    """The first thing that is wrong, by the dotted name of its field."""
    found = error.errors()
    place = found[0]["loc"][:1]
    within = [{**each, "loc": each["loc"][1:] or place} for each in found if each["loc"][:1] == place]
    return invalid_request(within)


def install(app: FastAPI) -> None:
    """Makes the application answer with problem documents. What no handler knows is left to the frame."""

    async def shoal_error(connection: HTTPConnection, error: Exception) -> Response | None:
        assert isinstance(error, ShoalError)
        return await _refuse(connection, error)

    async def http_error(connection: HTTPConnection, error: Exception) -> Response | None:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            error.headers = {"Allow": _methods_at(connection)}
        return await _refuse(connection, from_http(error))

    async def validation_error(connection: HTTPConnection, error: Exception) -> Response | None:
        assert isinstance(error, RequestValidationError | WebSocketRequestValidationError)
        return await _refuse(connection, from_validation(error))

    handlers: dict[type[Exception], Any] = {
        ShoalError: shoal_error,
        HTTPException: http_error,
        RequestValidationError: validation_error,
        WebSocketRequestValidationError: validation_error,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _methods_at(connection: HTTPConnection) -> str:
    """All methods of the address: the framework names only those of its first route."""
    path = getattr(connection.scope.get("route"), "path", None)
    found = {m for route in connection.app.routes if getattr(route, "path", None) == path for m in _methods(route)}
    return ", ".join(sorted(found))


def _methods(route: BaseRoute) -> Iterable[str]:
    return getattr(route, "methods", None) or ()


async def _refuse(connection: HTTPConnection, error: ShoalError) -> Response | None:
    context = context_of(connection)
    context.outcome = error.code
    response = answer(error, context.request_id)
    if not isinstance(connection, WebSocket):
        return response
    if connection.application_state is not WebSocketState.CONNECTING:
        # Its handler has said what went wrong in messages; here it is only closed.
        if connection.application_state is WebSocketState.CONNECTED:
            await connection.close(1011 if status_of(error) >= 500 else 1008, error.code)
    elif "websocket.http.response" in connection.scope.get("extensions", {}):
        await connection.send_denial_response(response)
    else:
        await connection.close(1008, error.code)  # answered with 403: such a server can say no more
    return None
