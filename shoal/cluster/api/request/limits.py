"""Limits of a request: how much it may send, and how long that may take."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import parse_qsl, unquote_to_bytes

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from shoal.cluster.api.request.problems import Refused
from shoal.model.errors import DeadlineExceeded, InvalidRequest, Unavailable

MOST_LARGE = 64 << 20
"""Bytes beyond the usual size that all bodies of this replica together may hold in memory, if the largest fits."""

BODY_S = 30.0
"""Seconds for a whole JSON body."""

_MOST_QUERY = 32 * 1024
_SURROGATE = re.compile("[\ud800-\udfff]")


class LargeBodies:
    """The memory for what is beyond the usual size in the bodies of all requests of this process together."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0

    def take(self, count: int) -> None:
        """Counts `count` more bytes; `Unavailable` if there is no room for them."""
        if self.held + count > self.most:
            raise Unavailable("other large requests fill the memory for them; send it again", retry_after=1)
        self.held += count


class JsonRequest(Request):
    """A request whose body is JSON: read within its bounds, parsed strictly.

    No NaN, no Infinity, no lone surrogates, no text that is not UTF-8: `InvalidRequest`. Call `release` once it is
    answered.
    """

    _beyond = 0  # bytes beyond the usual size

    async def load(self, usual: int, most: int, large: LargeBodies) -> None:
        """Reads and parses the body, of at most `most` bytes, and keeps it for FastAPI to find. What is beyond `usual`
        takes its room from `large`."""
        _check_type(self.headers.get("content-type"))
        self._large = large
        self._body = await self._bounded(usual, most)
        if self._body:
            try:
                self._json = from_json(self._body, allow_inf_nan=False, cache_strings="none")
            except ValueError as error:
                raise InvalidRequest(f"body: this is no JSON: {str(error)[:200]}", field="body") from None

    def release(self) -> None:
        """Gives its room back."""
        if self._beyond:
            self._large.held -= self._beyond
            self._beyond = 0

    async def _bounded(self, usual: int, most: int) -> bytes:
        length = self.headers.get("content-length")
        if length is not None and length.isdecimal() and int(length[:20]) > most:
            raise _too_large(most)
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    piece = message.get("body", b"")
                    size += len(piece)
                    if size > most:
                        raise _too_large(most)
                    if size > usual + self._beyond:
                        self._large.take(size - usual - self._beyond)
                        self._beyond = size - usual
                    pieces.append(piece)
                    if not message.get("more_body", False):
                        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        except TimeoutError:
            raise DeadlineExceeded(f"the body did not arrive within {BODY_S:g} s; send it faster") from None


def _check_type(content_type: str | None) -> None:
    media, _, rest = (content_type or "").partition(";")
    media = media.strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise Refused(415, "the body must be JSON; send it with 'Content-Type: application/json'")
    charset = rest.lower().replace('"', "").replace(" ", "").partition("charset=")[2].partition(";")[0]
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise Refused(415, f"the body must be JSON in UTF-8, not {charset[:40]!r}")


def _too_large(most: int) -> Refused:
    # The rest of the body is not read, so the connection cannot be used again.
    return Refused(
        413, f"the body has more than {most} bytes; send less at a time", {"Connection": "close"}, limit=most
    )


def check_path(path: bytes) -> None:
    """Raises `InvalidRequest` if a raw path is not text: the framework would replace characters."""
    _check_ascii(path, "path")
    if b"%" in path:
        try:
            unquote_to_bytes(path).decode()
        except UnicodeDecodeError:
            raise InvalidRequest("path: it is not valid UTF-8; encode it as UTF-8", field="path") from None


def check_query(query: bytes, known: frozenset[str], byte_path: bool) -> None:
    """Raises `InvalidRequest` for a query string that is not text, or holds a parameter that is not `known`.

    `byte_path`: the parameter `path` may be any bytes, as a file's name may.
    """
    _check_ascii(query, "query")
    if not all(query.split(b"&")):
        raise InvalidRequest("query: there is no parameter before, between or after an '&'; remove it", field="query")
    for name, value in parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="surrogateescape"):
        if name not in known:
            shown = ascii(name[:100])[1:-1]
            has = f"there are {', '.join(sorted(known))}" if known else "there are none"
            raise InvalidRequest(
                f"{shown}: there is no such query parameter here ({has}); remove it", field=shown or "query"
            )
        if "\0" in value:
            raise InvalidRequest(f"{name}: it holds a NUL character; remove it", field=name)
        if not (byte_path and name == "path") and not value.isascii() and _SURROGATE.search(value):
            raise InvalidRequest(f"{name}: it is not valid UTF-8; encode it as UTF-8", field=name)


def _check_ascii(part: bytes, what: str) -> None:
    if len(part) > _MOST_QUERY:
        raise InvalidRequest(f"{what}: {len(part)} bytes are too many; use at most {_MOST_QUERY}", field=what)
    if not part.isascii():
        raise InvalidRequest(f"{what}: it holds bytes that are not ASCII; percent-encode them", field=what)
