"""The route class of the API. Before a route's handler runs, it checks, in this order:

    1. who calls, and whether they may (`needs`), before the body is read
    2. path and query are text, and hold no parameter that the route does not know
    3. a JSON body is labelled as JSON, within its bounds, and strictly JSON

The audit entry is prepared before the first step, so that refused requests are entered, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from fastapi import APIRouter, params
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from shoal.cluster.api.access.audit import Audited, audited
from shoal.cluster.api.access.auth import Needs, needs
from shoal.cluster.api.request.limits import JsonRequest, check_path, check_query
from shoal.model.verbs import Verb

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]
_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])
_PARAMETER = re.compile(r"{(\w+)}")


class ApiRoute(APIRoute):
    """A route of the API. `body_factor`: its JSON may have this many times `api.max_body`. `byte_query`: its query
    holds a path that need not be UTF-8."""

    body_factor: ClassVar[int] = 1
    byte_query: ClassVar[bool] = False

    def get_route_handler(self) -> _Handler:
        inner = self.inner_handler()
        calls = [*calls_of(self.dependant)]
        needed = next((call for call in calls if isinstance(call, Needs)), None)
        marks = [call for call in calls if isinstance(call, Audited)]
        known = frozenset(_query_names(self.dependant))
        wants_json = self.body_field is not None
        factor = self.body_factor
        byte_query = self.byte_query

        async def handle(request: Request) -> Response:
            for mark in marks:
                mark.begin(request)
            if needed is not None:
                await needed(request)
            scope = request.scope
            check_path(scope.get("raw_path") or b"")
            if query := scope["query_string"]:
                check_query(query, known, byte_query)
            if not wants_json:
                return await inner(request)
            body = JsonRequest(scope, request.receive)
            usual = request.app.state.settings.api.max_body
            try:
                await body.load(usual, factor * usual, request.app.state.large_bodies)
                return await inner(body)
            finally:
                body.release()

        return handle

    def inner_handler(self) -> _Handler:
        """The handler to run after the checks: FastAPI's own."""
        return super().get_route_handler()


class LargeRoute(ApiRoute):
    """A route whose JSON may be larger, but not by much: the replica does nothing else while it parses it."""

    body_factor = 4


class StartRoute(ApiRoute):
    """A route whose JSON starts a process, with arguments and variables up to the kernel's limit (`MAX_REQUEST`)."""

    body_factor = 16


class PathRoute(ApiRoute):
    """A route whose query holds a path in a sandbox."""

    byte_query = True


def new_router(
    tag: str, route_class: type[ApiRoute] = ApiRoute, *, dependencies: Sequence[params.Depends] = ()
) -> APIRouter:
    """A router of the API. `tag`: its section in the OpenAPI document; `dependencies`: those of all its routes."""
    return APIRouter(
        tags=[tag], route_class=route_class, dependencies=dependencies, generate_unique_id_function=_operation_id
    )


def verb_route(routes: APIRouter, verb: Verb[..., Any], **options: Any) -> Callable[[_Endpoint], _Endpoint]:
    """Decorates a verb's handler. The table of verbs gives its address, its scope and its action in the audit log,
    whose target is the path's first parameter. `options`: FastAPI's."""
    assert verb.scope is not None
    dependencies = [needs(verb.scope, everywhere=verb.everywhere)]
    if verb.audit is not None:
        target = _PARAMETER.search(verb.path)
        dependencies.append(audited(verb.audit, None if target is None else target[1]))
    return routes.api_route(verb.path, methods=[verb.method], dependencies=dependencies, **options)


def _operation_id(route: APIRoute) -> str:
    """The function's name, so that generated clients read well."""
    return f"head_{route.name}" if route.methods == {"HEAD"} else route.name


def calls_of(dependant: Dependant) -> Iterator[Any]:
    """All dependencies of a route, with their own dependencies."""
    for child in dependant.dependencies:
        yield child.call
        yield from calls_of(child)


def _query_names(dependant: Dependant) -> Iterator[str]:
    yield from (param.alias for param in dependant.query_params)
    for child in dependant.dependencies:
        yield from _query_names(child)
