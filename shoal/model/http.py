"""The error tree as HTTP: one status for each class, and problem documents (RFC 9457).

A problem is `{"type", "title", "status", "detail", "code", "retryable", "request_id", …fields of the error}`, as
`application/problem+json`. `code` is the error's own and stable; `type` is `urn:shoal:error:<code>`. The API writes
them, the HTTP transport reads them.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from shoal.model.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    SandboxEnded,
    ShoalError,
    Unauthenticated,
    Unavailable,
    error_from_dict,
)

PROBLEM = "application/problem+json"

REQUEST_ID = "[A-Za-z0-9._-]{1,64}"
"""The form of a client's `X-Request-Id`; any other value is replaced by a new one."""

SUBPROTOCOL = "shoal.v1"
BEARER_SUBPROTOCOL = "shoal.bearer."
"""WebSocket subprotocols: the API's own, and a prefix for the token, since browsers cannot send headers."""

STATUS: dict[type[ShoalError], int] = {
    InvalidRequest: 400,
    Unauthenticated: 401,
    PermissionDenied: 403,
    NotFound: 404,
    DeadlineExceeded: 408,
    AlreadyExists: 409,
    FailedPrecondition: 409,
    SandboxEnded: 410,
    QuotaExceeded: 429,
    Internal: 500,
    Unavailable: 503,
}
"""By class; other classes have their parent's."""

_OURS = frozenset({"type", "title", "status", "detail", "code", "retryable", "request_id", "instance"})


def status_of(error: ShoalError) -> int:
    """The HTTP status for an error."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def problem(error: ShoalError, request_id: str | None = None) -> dict[str, Any]:
    """The problem document for an error, JSON-ready; non-text in it, such as a path's bytes, is escaped (`\\udcff`)."""
    status = status_of(error)
    fields = {name: _spelt(value) for name, value in error.fields.items() if name not in _OURS}
    return {
        "type": f"urn:shoal:error:{error.code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": _spelt(error.message),
        "code": error.code,
        "retryable": error.retryable,
        **({} if request_id is None else {"request_id": request_id}),
        **fields,
    }


def _spelt(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_spelt(key): _spelt(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_spelt(each) for each in value]
    return value


def error_from_problem(data: dict[str, Any]) -> ShoalError:
    """The error that `problem` described."""
    fields = {name: value for name, value in data.items() if name not in _OURS}
    error = error_from_dict({"code": data.get("code"), "message": str(data.get("detail", "no detail")), **fields})
    error.retryable = data.get("retryable") is True
    return error


def error_from_response(status: int, content_type: str, body: bytes) -> ShoalError:
    """The error for a response with a status of 400 or more, from Shoal or from a proxy before it."""
    if content_type.split(";")[0].strip() == PROBLEM:
        try:
            data = json.loads(body)
            if isinstance(data, dict):
                return error_from_problem(data)
        except ValueError:
            pass  # truncated
    text = body[:200].decode("utf-8", "replace").strip()
    if status in (502, 503, 504):
        return Unavailable(f"the API did not answer (HTTP {status} from a proxy before it: {text})")
    known = {401: Unauthenticated, 403: PermissionDenied, 429: QuotaExceeded}
    return known.get(status, Internal)(f"HTTP {status}, not from a Shoal API: {text}; is the URL right?")
