"""Files in a sandbox: download whole or in parts, upload, remove.

A download is of one state of the file, as far as that can be known: the file is looked at before and after it is
opened. A browser never shows a download as a page of the API's own origin. An upload appears as a whole at its end; if
the client goes away before, the old file stays. Only `append` may leave a part.
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from shoal.client.retrying_agent import RetryingAgent
from shoal.cluster.api.access.audit import audited
from shoal.cluster.api.access.auth import needs
from shoal.cluster.api.files.parts import FilePart
from shoal.cluster.api.files.ranges import entity_tag, http_date, not_modified, part_of
from shoal.cluster.api.request.answers import Json
from shoal.cluster.api.request.bodies import declared_length, query_path, streamed
from shoal.cluster.api.request.context import Cluster
from shoal.cluster.api.request.route import PathRoute, new_router
from shoal.cluster.api.request.streaming import OCTETS, StreamingBody
from shoal.cluster.api.schema.data import ACTS, Written, mode_of
from shoal.model.access import Scope
from shoal.model.errors import FailedPrecondition, InvalidRequest, IsADirectory
from shoal.wire import checks
from shoal.wire.agent import Agent, Entry

_FILES = "/v1/sandboxes/{sandbox_id}/files"
_INLINE = 64 << 10
"""Uploads up to this size are read first, sent in one round trip, and sent again if the connection broke."""

STALL_S = 300.0
"""Seconds for which a client may not read from a download. It may get the rest with `Range`."""

_TRIES = 3
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
DOWN: dict[int | str, dict[str, Any]] = {
    200: {"content": _BINARY},
    206: {"content": _BINARY, "description": "The part that `Range` asks for"},
    304: {"description": "As the client has it"},
}


def body_of() -> dict[str, Any]:
    """The document's words for a request whose body is a file."""
    return _BINARY


def _header(name: str, description: str, *examples: str) -> dict[str, Any]:
    # Only for the document: HTTP ignores malformed ranges and dates.
    shown = {str(place): {"value": value} for place, value in enumerate(examples)}
    return {"name": name, "in": "header", "schema": {"type": "string"}, "description": description, "examples": shown}


CONDITIONS = {
    "parameters": [
        _header(
            "Range",
            "One range of its bytes; of several, or of what is none, the answer is all.",
            "bytes=0-2",
            "bytes=-4",
            "bytes=100-",
        ),
        _header("If-Range", "An `ETag` or a date: the range holds only while the file is that one.", 'W/"0-0"'),
        _header("If-None-Match", "`ETag`s: 304 while the file is one of them.", 'W/"0-0"', "*"),
        _header("If-Modified-Since", "The same by a `Last-Modified`.", "Wed, 21 Oct 2026 07:28:00 GMT"),
    ]
}

Path = Annotated[str, Query(min_length=1, description="Absolute; percent-encoded bytes, UTF-8 or not")]
Mode = Annotated[str | None, Query(pattern="^[0-7]{1,4}$", description="Octal; default: as it was, else 644")]
User = Annotated[str, Query(max_length=256, description=ACTS)]

router = new_router("files", PathRoute, dependencies=[needs(Scope.RUN)])


@router.get(_FILES, responses=DOWN, response_class=Response, openapi_extra=CONDITIONS)
@router.head(_FILES, responses={200: {}, 206: {}, 304: {}}, response_class=Response, openapi_extra=CONDITIONS)
async def read_file(sandbox_id: str, request: Request, path: Path, transport: Cluster, user: User = "") -> Response:
    """A file's bytes, or one range of them."""
    return await download(RetryingAgent(transport, sandbox_id), query_path(request), user, request)


@router.put(
    _FILES,
    response_class=Response,
    responses={200: {"model": Written}},
    openapi_extra={"requestBody": {"content": _BINARY}},
    dependencies=[audited("files.write")],
)
async def write_file(
    sandbox_id: str,
    request: Request,
    path: Path,
    transport: Cluster,
    mode: Mode = None,
    parents: Annotated[bool, Query(description="Make missing directories")] = False,
    append: bool = False,
    user: User = "",
) -> Response:
    """Writes a file, of any size. A reader sees the old file or the new one, nothing between."""
    upload = Upload(query_path(request), mode_of(mode), parents, append, user)
    return Json({"size": await upload.run(RetryingAgent(transport, sandbox_id), request)})


@router.delete(_FILES, status_code=204, response_class=Response, dependencies=[audited("files.remove")])
async def remove_file(
    sandbox_id: str, request: Request, path: Path, transport: Cluster, recursive: bool = False, user: User = ""
) -> Response:
    """Removes a file, a link (not its target), an empty directory, or with `recursive` a directory tree."""
    name = query_path(request)
    await RetryingAgent(transport, sandbox_id).call(lambda agent: agent.remove(name, recursive, user))
    return Response(status_code=204)


async def download(agent: RetryingAgent, path: str, user: str, request: Request) -> Response:
    for _ in range(_TRIES):
        entry = _file(await agent.call(lambda agent: agent.stat(path, user=user)))
        tag = entity_tag(entry.size, entry.mtime_ns)
        headers = {
            "Accept-Ranges": "bytes",
            "ETag": tag,
            "Last-Modified": http_date(entry.mtime_ns),
            "Cache-Control": "private, no-cache",
            "Content-Disposition": "attachment",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox; default-src 'none'",
        }
        if not_modified(request.headers, tag, entry.mtime_ns):
            return Response(status_code=304, headers=headers)
        part = part_of(request.headers, entry.size, tag, entry.mtime_ns)
        if not part.whole:
            headers["Content-Range"] = f"bytes {part.begin}-{part.end - 1}/{entry.size}"
        if request.method == "HEAD":
            headers["Content-Length"] = str(part.length)
            return Response(status_code=200 if part.whole else 206, headers=headers, media_type=OCTETS)
        source = FilePart(agent, path, entry, part, user)
        if await source.begin():
            return StreamingBody(
                source, status_code=200 if part.whole else 206, headers=headers, length=source.length, stall_s=STALL_S
            )
    raise FailedPrecondition("the file is being replaced again and again; try later", state="changing")


def _file(entry: Entry) -> Entry:
    if entry.kind == "dir":
        raise IsADirectory("path: it is a directory; `/entries` lists it, `/archive` packs it", field="path")
    if entry.kind == "other":  # the agent would refuse a download, but HEAD does not ask it
        raise InvalidRequest("path: it is no regular file; use it by a command run in the sandbox", field="path")
    return entry


@dataclass(frozen=True, slots=True)
class Upload:
    """A file to write from a request's body."""

    path: str
    mode: int | None
    parents: bool
    append: bool
    user: str

    async def run(self, agent: RetryingAgent, request: Request) -> int:
        """Writes it and returns its size. If the body breaks off, nothing is written: `ClientDisconnect`."""
        checks.path(self.path)
        pieces = streamed(request)
        length = declared_length(request)
        if length is not None and length <= _INLINE:
            data = b"".join([piece async for piece in pieces])
            if not self.append:
                return await agent.call(lambda agent: self._write(agent, data))
            return await agent.once(lambda agent: self._write(agent, data), f"append to {self.path}")
        if self.append:
            return await agent.once(lambda agent: self._write(agent, pieces), f"append to {self.path}")
        # The client's bytes are gone. It may send them again, and the answer says so.
        return await self._write(await agent.call(itself), pieces)

    async def _write(self, agent: Agent, data: bytes | AsyncIterable[bytes]) -> int:
        return await agent.write(
            self.path, data, mode=self.mode, append=self.append, parents=self.parents, user=self.user
        )


async def itself(agent: Agent) -> Agent:
    """A question that only reaches the agent."""
    return agent
