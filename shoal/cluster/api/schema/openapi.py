"""The OpenAPI document: FastAPI's, completed by problems, authentication and scopes."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from shoal.cluster.api.access.auth import Needs
from shoal.cluster.api.request.route import ApiRoute, calls_of
from shoal.cluster.api.schema.control import Problem
from shoal.model.http import PROBLEM

VERSION = "1"
SUMMARY = "Sandboxes for untrusted code, on machines of your own."
DESCRIPTION = """\
Every error is a problem document (RFC 9457) with a stable `code` and `retryable`: whether the same call may succeed
later. A request that does not fit this document is answered with 400 and names the `field`; members and query
parameters that are not in it are refused. A JSON body that is too large is answered with 413, one that takes more than
30 s to arrive with 408.

Every answer has an `X-Request-Id`: the request's own if it sent one (letters, digits, `.`, `_`, `-`; at most 64), else
a new one.

A token sees one environment, or all (`*`). What is in other environments does not exist for it.

Units: cores, MiB, seconds, unix seconds.
"""
TAGS = [
    {"name": "sandboxes", "description": "Create, find, list, tag, await and end sandboxes."},
    {"name": "processes", "description": "Run programs in a sandbox, and speak with them."},
    {"name": "files", "description": "Read and write a sandbox's files."},
    {"name": "logs", "description": "What a sandbox's own command wrote."},
    {"name": "events", "description": "What happens to sandboxes, as it happens."},
    {"name": "tunnels", "description": "Ways in from outside to a sandbox's ports."},
    {"name": "pools", "description": "Keep sandboxes ready, and take them."},
    {"name": "rollouts", "description": "See how far maps are, and their rewards."},
    {"name": "secrets", "description": "Store values that sandboxes get, and that no request reads back."},
    {"name": "volumes", "description": "Directories that outlive sandboxes, and their files."},
    {"name": "images", "description": "Take images of sandboxes' files, build, list, name and delete them."},
    {"name": "administration", "description": "Tokens, environments and their quotas, the audit log, nodes."},
    {"name": "health", "description": "Whether this replica lives, and can do its work."},
]

_MEANINGS = {
    400: "Invalid request; `field` says where.",
    401: "No token, or one that is unknown, expired or revoked.",
    403: "The token does not allow this.",
    404: "Not found, as far as the token may know.",
    408: "It took longer than its deadline.",
    409: "The name is taken, or the sandbox is in the wrong state.",
    410: "The sandbox has ended; `reason` and `exit_code` say how.",
    413: "The body is too large.",
    415: "The body is not called JSON.",
    416: "There is nothing of the `Range`; `Content-Range` says how much there is.",
    429: "A quota or rate was hit; see `Retry-After`.",
    500: "Internal error: please report it.",
    503: "Not possible now, and nothing happened: repeat the call. With `sent` and not `retryable`: check first.",
}


def install(app: FastAPI) -> None:
    """Makes the application serve this document at `/openapi.json`."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = build(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way of doing this


def build(app: FastAPI) -> dict[str, Any]:
    """The document."""
    data = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        tags=app.openapi_tags,
        routes=app.routes,
    )
    components = data.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "An API token, as `shoal_tk-…`."}
    }
    components["responses"] = {f"Problem{status}": _response(meaning) for status, meaning in _MEANINGS.items()}
    for route in app.routes:
        if isinstance(route, ApiRoute) and route.include_in_schema:
            for method in route.methods or ():
                _complete(data["paths"][route.path_format][method.lower()], route, method)
    return data


def _response(meaning: str) -> dict[str, Any]:
    return {"description": meaning, "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}}


def _complete(operation: dict[str, Any], route: ApiRoute, method: str) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    for status in sorted(_statuses(route, method)):
        responses.setdefault(str(status), {"$ref": f"#/components/responses/Problem{status}"})
    needed = next((call for call in calls_of(route.dependant) if isinstance(call, Needs)), None)
    if needed is not None:
        operation["security"] = [{"token": []}]
        of = " of the whole cluster (`*`)" if needed.everywhere else ""
        note = f"Needs a token of scope `{needed.scope.value}`{of}."
        operation["description"] = f"{operation.get('description', '').strip()}\n\n{note}".strip()


def _statuses(route: ApiRoute, method: str) -> set[int]:
    """The problems that a route may answer with, by what it is."""
    found = {400, 500, 503}
    if any(isinstance(call, Needs) for call in calls_of(route.dependant)):
        found |= {401, 403, 404}  # 404: of an environment that is not the token's
    if "{sandbox_id}" in route.path:
        found |= {408, 409, 410, 429}
    if method in ("POST", "PUT", "DELETE"):
        found |= {408, 409, 429}
    if route.body_field is not None:
        found |= {413, 415}
    if 206 in route.responses:
        found.add(416)
    return found
