"""Events of sandboxes, as server-sent events or as JSON.

A stream asks the cluster for more only when the client has read what came before, so a slow reader holds one batch.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import Header, Query
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from shoal.cluster.api.access.auth import Reader, environment_for
from shoal.cluster.api.processes.websockets import guard
from shoal.cluster.api.request.answers import Json
from shoal.cluster.api.request.context import Cluster
from shoal.cluster.api.request.route import new_router
from shoal.cluster.api.request.streaming import StreamingBody
from shoal.cluster.api.schema.administration import Events
from shoal.cluster.api.schema.control import EnvironmentQuery, SandboxId
from shoal.model import verbs
from shoal.model.access import SandboxEvent
from shoal.model.errors import InvalidRequest
from shoal.model.states import TERMINAL
from shoal.transport.contract import Transport

COMMENT_S = 15.0
"""Seconds after which a silent stream sends a comment to show that it lives."""

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_LAST = {state.value for state in TERMINAL}
_TOP = 1 << 63

After = Annotated[
    int | None, Query(ge=0, lt=_TOP, description="Only events with an id above this. `Last-Event-ID` goes before it.")
]
Follow = Annotated[
    bool, Query(description="Whether to stay for what comes; false: JSON of what there is, at most 1,000.")
]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=20, description="As browsers send it.")]

router = new_router("events")
_BOTH: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Events,
        "description": "Events, oldest first. Streamed, each has its `id`, its kind as `event`, and itself as `data`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get(
    "/v1/sandboxes/{sandbox_id}/events",
    response_class=Response,
    responses=_BOTH,
    summary="Follow a sandbox's events",
)
async def sandbox_events(
    sandbox_id: SandboxId,
    request: Request,
    who: Reader,
    cluster: Cluster,
    after: After = None,
    follow: Follow = True,
    last_event_id: LastEventId = None,
) -> Response:
    """Its events from its creation on, or after the given one. The stream ends when the sandbox ends."""
    await cluster.ask(verbs.get, sandbox_id)
    start = _start(last_event_id, after) or 0
    if not follow:
        return _now(await cluster.ask(verbs.events, start, sandbox_id))
    return _stream(request, _of_sandbox(cluster, sandbox_id, start))


@router.get("/v1/events", response_class=Response, responses=_BOTH, summary="Follow all events")
async def all_events(
    request: Request,
    who: Reader,
    cluster: Cluster,
    environment: EnvironmentQuery = None,
    after: After = None,
    follow: Follow = True,
    last_event_id: LastEventId = None,
) -> Response:
    """Events of an environment, or of all that the token may see. A stream begins now, or after the given event;
    without `follow` the answer begins with the oldest."""
    chosen = None if environment is None else environment_for(who, environment)
    start = _start(last_event_id, after)
    if not follow:
        return _now(await cluster.ask(verbs.events, start or 0, environment=chosen))
    if chosen is not None:
        await cluster.ask(verbs.environment, chosen)
    if start is None:
        start = await cluster.ask(verbs.last_event)
    return _stream(request, _of_all(cluster, chosen, start))


def _start(last_event_id: str | None, after: int | None) -> int | None:
    if last_event_id is None or not last_event_id:
        return after
    if not (last_event_id.isascii() and last_event_id.isdecimal() and int(last_event_id) < _TOP):
        raise InvalidRequest("Last-Event-ID: it is no event's id; send the last one that came", field="Last-Event-ID")
    return int(last_event_id)


def _now(events: list[SandboxEvent]) -> Json:
    return Json({"events": [event.to_dict() for event in events]})


def _stream(request: Request, lines: AsyncGenerator[bytes, None]) -> StreamingBody:
    return StreamingBody(lines, headers=_HEADERS, media_type="text/event-stream", check=lambda: guard(request))


async def _of_sandbox(cluster: Transport, sandbox_id: str, after: int) -> AsyncGenerator[bytes, None]:
    yield b": these are its events\n\n"
    ended = False
    while True:
        # Whether it has ended is checked first: then its last event is already there.
        ended = ended or (await cluster.ask(verbs.get, sandbox_id)).ended
        found = await cluster.ask(verbs.events, after, sandbox_id, wait_s=0 if ended else COMMENT_S)
        for event in found:
            yield _sse(event)
            after = event.id
            if event.kind in _LAST:
                return
        if not found:
            if ended:
                return
            yield b": still here\n\n"


async def _of_all(cluster: Transport, environment: str | None, after: int) -> AsyncGenerator[bytes, None]:
    # An id without an event: a client that is cut off before the first event resumes here.
    yield b": events follow\nid: %d\n\n" % after
    while True:
        found = await cluster.ask(verbs.events, after, environment=environment, wait_s=COMMENT_S)
        for event in found:
            yield _sse(event)
            after = event.id
        if not found:
            yield b": still here\n\n"


def _sse(event: SandboxEvent) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.id, event.kind.encode(), to_json(event.to_dict()))
