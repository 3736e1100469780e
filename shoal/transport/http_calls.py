"""Requests to the API, with Shoal's errors and with retries.

A call that failed is repeated if nothing of it was sent, if it may be sent twice (`again`), or if the API says that it
may succeed later (`retryable`). It is repeated for `PATIENCE_S`, after pauses that grow and vary, or that are as long
as the API asks for.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import aiohttp

from shoal.model import call_context
from shoal.model.errors import Internal, InvalidRequest, QuotaExceeded, ShoalError, Unavailable
from shoal.model.http import PROBLEM, error_from_response
from shoal.transport.http_errors import Broken, not_shoal, translate
from shoal.transport.http_pools import CONNECT_S, pools
from shoal.transport.http_server import Server
from shoal.transport.loops import CLOSED, being_cancelled

PATIENCE_S = 20.0
"""How long a call is repeated after its first failure. An API that is being restarted is back by then."""

ANSWER_S = 30.0
"""How long an answer may take in addition to the time that the call itself may take."""

MAX_ANSWER = 64 << 20
_MAX_PROBLEM = 1 << 20
_AT_ONCE = 1 << 20
# A loop of our own, not tenacity's: it takes `retry_after` and renews its budget, on the path of every exec over HTTP.
_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful response, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise not_shoal("the answer is no JSON: what answers there is not Shoal's API; is the URL right?") from None


class HttpCalls:
    """Requests to one API, from any event loop."""

    def __init__(self, server: Server, clock: Callable[[], float] = time.monotonic) -> None:
        self.server = server
        self.pools = pools(server, f"shoal/{_version()}")
        self._clock = clock

    async def json(self, method: str, path: str, **options: Any) -> Any:
        """The JSON that a call answers with; options as for `call`."""
        return (await self.call(method, path, **options)).json()

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        again: bool = True,
        for_room: bool = False,
        takes_s: float = 0,
        deadline_s: float | None = None,
        patience_s: float = PATIENCE_S,
    ) -> Answer:
        """Makes a call and returns its answer, or raises its error, whose fields have the `request_id`.

        `path`: below the API's base, quoted. `query`: values of None are left out, sequences repeated. `body`: sent as
        JSON, bytes as they are. `again`: the call may be sent twice. `for_room`: it waits for room that other calls may
        have to free. `takes_s`: seconds that the API may take for it. `deadline_s`: the same, and the API is told what
        is left of it as `deadline`, at each attempt.
        """
        # A call that takes long waits for its turn first. Its `takes_s` begins after that; a deadline, which is its
        # caller's, runs meanwhile.
        turn: AbstractAsyncContextManager[None] = nullcontext()
        if method != "GET" and (takes_s > 0 or deadline_s is not None):
            pool = await self.pools.get()
            turn = pool.room_turns if for_room else pool.turns
        asked = self._clock()
        async with turn:
            request_id = new_request_id()
            started = since = self._clock()
            delay = _FIRST_DELAY_S
            while True:
                begun = self._clock()
                if deadline_s is not None:
                    takes_s = max(0.001, deadline_s - (begun - asked))
                    query = {**(query or {}), "deadline": f"{takes_s:.3f}"}
                try:
                    async with self.response(
                        method, path, query=query, body=body, headers=headers, request_id=request_id, takes_s=takes_s
                    ) as response:
                        return Answer(response.status, response.headers, await _read(response, MAX_ANSWER))
                except Broken as error:
                    failed: ShoalError = error.to_shoal()
                    if not (error.unsent or again):
                        failed.retryable = False
                    if not error.silence and self._clock() - begun > patience_s:
                        since = self._clock()  # it had run for long, so the trouble has only just begun
                except Unavailable as error:
                    failed = error
                    since = started  # the API has waited itself
                failed.fields["request_id"] = request_id
                told = failed.fields.get("retry_after", 0)
                pause = max(delay * random.uniform(0.5, 1.0), told if isinstance(told, int | float) else 0)
                if not failed.retryable or self._clock() + pause - since > patience_s:
                    raise failed
                await asyncio.sleep(pause)
                delay = min(2 * delay, _LONGEST_DELAY_S)

    @asynccontextmanager
    async def response(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        request_id: str | None = None,
        takes_s: float | None = 0,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One attempt: a successful response, its body not read yet. Raises `Broken`, or the error that the API
        answered with.

        `takes_s` None: the body may take any time.
        """
        request_id = request_id or new_request_id()
        pool = await self.pools.get()
        session = pool.short if takes_s == 0 else pool.long
        total = None if takes_s is None else takes_s + ANSWER_S
        try:
            async with session.request(
                method,
                self.server.url + path,
                params=None if query is None else _pairs(query),
                data=None if body is None else _payload(body),
                headers={**self.headers(request_id), **(headers or {})},
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=total, sock_connect=CONNECT_S),
            ) as response:
                if response.status in (502, 504):
                    # A proxy before the API says that the API has gone, or does not answer.
                    error = await self._error(response, request_id)
                    raise Broken(error.message)
                if response.status >= 300:
                    raise await self._error(response, request_id)
                yield response
        except asyncio.CancelledError:
            if session.closed and not being_cancelled():
                raise Broken(CLOSED, unsent=True) from None  # closing the pool cancels those that wait for a connection
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise translate(error, self.server, method) from None

    def headers(self, request_id: str) -> dict[str, str]:
        """The headers of every request."""
        bearer = {} if self.server.token is None else {"Authorization": f"Bearer {self.server.token}"}
        parent = call_context.now().traceparent
        return {**bearer, "X-Request-Id": request_id, **({"traceparent": parent} if parent else {})}

    async def close(self) -> None:
        """Closes this loop's connections."""
        await self.pools.close()

    async def _error(self, response: aiohttp.ClientResponse, request_id: str) -> ShoalError:
        if response.status < 400:
            place = response.headers.get("Location", "nowhere")[:200]
            return not_shoal(f"{self.server.url} sends on to {place}; use the URL that it names (https?)")
        body = await _read(response, _MAX_PROBLEM)
        kind = response.headers.get("Content-Type", "")
        error = error_from_response(response.status, kind, body)
        if isinstance(error, Internal) and not kind.startswith(PROBLEM):
            return not_shoal(f"{self.server.url} is not Shoal's API: {error.message}")
        wait_s = _retry_after(response.headers.get("Retry-After"))
        if wait_s is not None and isinstance(error, QuotaExceeded | Unavailable):
            error.fields.setdefault("retry_after", wait_s)
        error.fields["request_id"] = response.headers.get("X-Request-Id", request_id)
        return error


def new_request_id() -> str:
    return f"rq-{secrets.token_hex(8)}"


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body; `Internal` if it has more than `limit` bytes, which are then not read."""
    if (response.content_length or 0) <= limit:
        pieces, size = [], 0
        async for piece in response.content.iter_any():
            size += len(piece)
            if size > limit:
                break
            pieces.append(piece)
        else:
            return b"".join(pieces)
    raise Internal(f"the API's answer is longer than {limit} bytes")


def _payload(body: Any) -> aiohttp.Payload:
    """JSON of any size; `InvalidRequest` for values that JSON does not have. What is large is read piece by piece:
    aiohttp warns of sending it at once. Bytes are sent as they are."""
    if isinstance(body, bytes):
        return aiohttp.BytesIOPayload(io.BytesIO(body), content_type="application/octet-stream")
    try:
        data = json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        field = _unsendable(body)
        raise InvalidRequest(
            f"{field or 'arguments'}: a value of this kind cannot be sent as JSON: {error}", field=field
        ) from None
    if len(data) <= _AT_ONCE:
        return aiohttp.BytesPayload(data, content_type="application/json")
    return aiohttp.BytesIOPayload(io.BytesIO(data), content_type="application/json")


def _unsendable(body: Any) -> str | None:
    """The argument that JSON does not have, as far as one can be named."""
    for name, value in body.items() if isinstance(body, Mapping) else ():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            return str(name)
    return None


def _pairs(query: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, str(each).lower() if isinstance(each, bool) else str(each))
        for name, value in query.items()
        for each in (value if isinstance(value, list | tuple) else [value])
        if each is not None
    ]


def _retry_after(text: str | None) -> float | None:
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 6 else None


def _version() -> str:
    try:
        return version("shoal")
    except PackageNotFoundError:  # a source tree that was not installed
        return "0"
