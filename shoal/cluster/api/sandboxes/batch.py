"""Many sandboxes in one call."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from shoal.client.create import named
from shoal.cluster.api.access.auth import environment_for
from shoal.cluster.api.request.answers import Json
from shoal.cluster.api.request.context import Cluster, Who, context_of
from shoal.cluster.api.request.problems import document
from shoal.cluster.api.request.route import LargeRoute, new_router, verb_route
from shoal.cluster.api.sandboxes.detached import seen_through
from shoal.cluster.api.sandboxes.routes import KEY_AS_GIVEN, IdempotencyKey
from shoal.cluster.api.schema.control import Batch, BatchResults
from shoal.model import verbs
from shoal.model.access import Caller
from shoal.model.errors import ShoalError, Unavailable
from shoal.model.info import SandboxInfo
from shoal.model.sandbox_json import info_to_json
from shoal.model.settings import SandboxDefaults
from shoal.model.spec import SandboxSpec

router = new_router("sandboxes", LargeRoute)


@verb_route(
    router,
    verbs.create_many,
    response_model=BatchResults,
    summary="Create many sandboxes",
)
async def create_sandboxes(
    body: Batch, request: Request, who: Who, cluster: Cluster, idempotency_key: IdempotencyKey = None
) -> Json:
    """Creates up to 1,000 sandboxes. Each has its own outcome, in the order of the requests.

    With an `Idempotency-Key`, the i-th sandbox (from 0) has the key `<key>:<i>` unless it has its own. That may have
    128 characters, including `:<i>`.
    """
    defaults = await cluster.defaults()
    key = idempotency_key or secrets.token_hex(16)
    specs = _specs(body, who, defaults, key)
    good = [spec for spec in specs if isinstance(spec, SandboxSpec)]
    made: Sequence[SandboxInfo | ShoalError] = ()
    try:
        if good:
            made = await seen_through(request, cluster.create_many(good, deadline=body.deadline, wait=body.wait))
    except Unavailable as error:
        own = (isinstance(item, ShoalError) or item.idempotency_key for item in body.sandboxes)
        known = idempotency_key is not None or all(own)
        raise named(error, None if known else key, KEY_AS_GIVEN) from None
    outcomes = iter(made)
    results = [next(outcomes) if isinstance(spec, SandboxSpec) else spec for spec in specs]
    _enter(request, results)
    return Json({"results": [_result(result, who.request_id) for result in results]})


def _specs(body: Batch, who: Caller, defaults: SandboxDefaults, key: str) -> list[SandboxSpec | ShoalError]:
    """Each item's spec, or what is wrong with it."""
    specs: list[SandboxSpec | ShoalError] = []
    for place, item in enumerate(body.sandboxes):
        if isinstance(item, ShoalError):
            specs.append(item)
            continue
        own = item.idempotency_key or f"{key}:{place}"
        try:
            specs.append(item.spec(defaults, environment_for(who, item.environment), own))
        except ShoalError as error:
            specs.append(error)
    return specs


def _enter(request: Request, results: list[SandboxInfo | ShoalError]) -> None:
    """Enters each sandbox in the audit log, instead of the call."""
    context = context_of(request)
    context.action = None
    for result in results:
        if isinstance(result, SandboxInfo):
            context.environment = result.spec.environment
            request.app.state.usage_reporter.enter(context, verbs.create_many.audit, result.id, "ok")
        else:
            request.app.state.usage_reporter.enter(context, verbs.create_many.audit, None, result.code)
    context.environment = None


def _result(result: SandboxInfo | ShoalError, request_id: str | None) -> dict[str, Any]:
    if isinstance(result, SandboxInfo):
        return {"sandbox": info_to_json(result)}
    return {"error": document(result, request_id)}
