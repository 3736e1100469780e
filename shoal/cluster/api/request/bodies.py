"""What a request says beside its JSON: paths in its query string, the length of its body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, HTTPConnection, Request

from shoal.model.errors import DeadlineExceeded, InvalidRequest

IDLE_S = 60.0
"""Seconds that a client may pause while it sends."""


def query_path(connection: HTTPConnection, name: str = "path") -> str:
    """A path out of the query string, its bytes as they are: what is not UTF-8 carries surrogate escapes, as in
    `os.fsdecode`."""
    raw: str = connection.scope["query_string"].decode("latin-1")
    for key, value in parse_qsl(raw, keep_blank_values=True, encoding="utf-8", errors="surrogateescape"):
        if key == name:
            return value
    raise InvalidRequest(f"{name} is missing: give an absolute path, percent-encoded", field=name)


def declared_length(request: Request) -> int | None:
    """What `Content-Length` says, where it says something."""
    value = request.headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else None


async def streamed(request: Request, idle_s: float = IDLE_S) -> AsyncIterator[bytes]:
    """A raw body piece by piece, of any size. `ClientDisconnect` where it breaks off, `DeadlineExceeded` where it
    stands still for `idle_s`.

    The server takes no more from the client than is asked for here, beyond what its socket buffers hold.
    """
    more = True
    while more:
        try:
            async with asyncio.timeout(idle_s):
                message = await request.receive()
        except TimeoutError:
            raise DeadlineExceeded(f"the body stood still for {idle_s:g} s; send it again") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        if piece := message.get("body", b""):
            yield piece
