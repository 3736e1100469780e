"""Directory trees as tar archives, down and up, and a watch on changes in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Query
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from shoal.client.retrying_agent import RetryingAgent
from shoal.client.watch import Watch
from shoal.cluster.api.access.audit import audited
from shoal.cluster.api.access.auth import needs
from shoal.cluster.api.files.routes import STALL_S, Path, User, itself
from shoal.cluster.api.processes.websockets import guard
from shoal.cluster.api.request.answers import Json
from shoal.cluster.api.request.bodies import query_path, streamed
from shoal.cluster.api.request.context import Cluster
from shoal.cluster.api.request.route import PathRoute, new_router
from shoal.cluster.api.request.streaming import StreamingBody
from shoal.cluster.api.schema.data import Unpacked, path_json
from shoal.model.access import Scope
from shoal.wire import checks
from shoal.wire.agent import Chunks, WatchEvent

TAR = "application/x-tar"
EVENTS = "text/event-stream"
KEEP_ALIVE_S = 15.0
_AT = "/v1/sandboxes/{sandbox_id}"
_TAR: dict[str, Any] = {TAR: {"schema": {"type": "string", "format": "binary"}}}
_EVENTS: dict[str, Any] = {EVENTS: {"schema": {"type": "string"}}}

router = new_router("files", PathRoute, dependencies=[needs(Scope.RUN)])


@router.get(f"{_AT}/archive", response_class=Response, responses={200: {"content": _TAR}})
async def download_archive(
    sandbox_id: str, request: Request, path: Path, transport: Cluster, user: User = ""
) -> Response:
    """A directory tree as a tar, with names relative to `path`; for a file, that file."""
    name = query_path(request)
    tree = await RetryingAgent(transport, sandbox_id).call(lambda agent: _Tree(agent.pack(name, user)).begun())
    headers = {"Content-Disposition": "attachment", "Cache-Control": "no-store"}
    return StreamingBody(tree, headers=headers, media_type=TAR, stall_s=STALL_S)


@router.put(
    f"{_AT}/archive",
    response_class=Response,
    responses={200: {"model": Unpacked}},
    openapi_extra={"requestBody": {"content": _TAR}},
    dependencies=[audited("files.write")],
)
async def upload_archive(
    sandbox_id: str, request: Request, path: Path, transport: Cluster, user: User = ""
) -> Response:
    """Unpacks a tar below a directory, which is made if missing. Members that lead out of it are refused. It may be
    sent again."""
    name = query_path(request)
    checks.path(name)
    agent = await RetryingAgent(transport, sandbox_id).call(itself)
    return Json(await agent.unpack(name, streamed(request), user))


@router.get(f"{_AT}/watch", response_class=Response, responses={200: {"content": _EVENTS}})
async def watch_path(
    sandbox_id: str,
    request: Request,
    path: Path,
    transport: Cluster,
    recursive: Annotated[bool, Query(description="Below it too, at any depth")] = False,
    user: User = "",
) -> Response:
    """Changes, as server-sent events, from the answer's first byte on.

    An event of kind `overflow` says that some were missed: list the directory again.
    """
    watch = Watch(RetryingAgent(transport, sandbox_id), query_path(request), recursive, user)
    await watch.start.aio()
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingBody(_Changes(watch), headers=headers, media_type=EVENTS, check=lambda: guard(request))


class _Tree:
    """An archive as a stream. `begun` raises what is wrong with the path, before the answer begins."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._first = b""

    async def begun(self) -> _Tree:
        try:
            self._first = await anext(self._chunks, b"")
        except BaseException:
            await self._chunks.aclose()
            raise
        return self

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._first
        async for chunk in self._chunks:
            yield chunk

    async def aclose(self) -> None:
        await self._chunks.aclose()


class _Changes:
    """A watch as server-sent events."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b": watching\n\n"
        waiting: asyncio.Task[WatchEvent | None] | None = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(self._watch.next.aio())
                done, _ = await asyncio.wait((waiting,), timeout=KEEP_ALIVE_S)
                if not done:
                    yield b":\n\n"
                    continue
                event, waiting = waiting.result(), None
                if event is None:
                    return
                yield b"data: " + to_json(_change(event)) + b"\n\n"
        finally:
            if waiting is not None:
                waiting.cancel()

    async def aclose(self) -> None:
        await self._watch.close.aio()


def _change(event: WatchEvent) -> dict[str, Any]:
    to = None if event.to is None else path_json(event.to)
    return {"kind": event.kind, "path": path_json(event.path), "to": to}
