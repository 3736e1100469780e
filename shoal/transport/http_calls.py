"""Requests to the API: one body for all of them. Errors as Shoal's, and again where that does no harm.

A call that failed is made again where nothing of it was sent, where it may be sent twice (`again`), and where the API itself says that it may
succeed (`retryable`): for `PATIENCE_S`, with pauses that grow and differ, or are as long as the API asks for.
"""

from __future__ import annotations

import asyncio
import errno
import json
import random
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import aiohttp

from shoal.model.errors import FailedPrecondition, Internal, InvalidRequest, QuotaExceeded, ShoalError, Unavailable
from shoal.model.http import PROBLEM, error_from_response
from shoal.transport.http_pools import CONNECT_S, pools
from shoal.transport.http_server import Server
from shoal.transport.loops import CLOSED, being_cancelled

PATIENCE_S = 20.0
"""How long a call goes on after the first failure: an API that is being restarted is back by then."""

ANSWER_S = 30.0
"""How long an answer may take, beside what the call itself is allowed."""

MAX_ANSWER = 64 << 20
_MAX_PROBLEM = 1 << 20
_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that is no error, read to its end."""

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

        `path`: below the API's base, quoted. `query`: None left out, sequences repeated. `body`: sent as JSON. `again`: sent twice it does what
        it does sent once. `for_room`: it waits for room, which other calls may have to make. `takes_s`: seconds that the API may take for it;
        `deadline_s`: the same, which the API is told as `deadline`, what is left of it each time.
        """
        # What does work over there has its turn first: none of its time passes meanwhile, but a deadline's, which is its caller's.
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
                        since = self._clock()  # it had been under way for long: the trouble has only just begun
                except Unavailable as error:
                    failed = error
                    since = started  # the API has been patient itself
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
        """One attempt: a response that is no error, its body still to be read. Raises `Broken`, or the error that it tells.

        `takes_s` None: its body may take for ever.
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
                json=body,
                headers={**self.headers(request_id), **(headers or {})},
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=total, sock_connect=CONNECT_S),
            ) as response:
                if response.status in (502, 504):
                    # Of what stands before the API: whoever had the request is gone, or does not answer.
                    error = await self._error(response, request_id)
                    raise Broken(error.message)
                if response.status >= 300:
                    raise await self._error(response, request_id)
                yield response
        except asyncio.CancelledError:
            if session.closed and not being_cancelled():
                raise Broken(CLOSED, unsent=True) from None  # closing them cancels whoever stands in line for one
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise translate(error, self.server, method) from None

    def headers(self, request_id: str) -> dict[str, str]:
        """What every request carries."""
        bearer = {} if self.server.token is None else {"Authorization": f"Bearer {self.server.token}"}
        return {**bearer, "X-Request-Id": request_id}

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


class Broken(Exception):
    """No answer came, or only part of one. `unsent`: the request did not go out; `silence`: nothing came for as long as was waited;
    `hopeless`: what it means where trying again is of no use."""

    def __init__(
        self, message: str, *, unsent: bool = False, silence: bool = False, hopeless: ShoalError | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.unsent = unsent
        self.silence = silence
        self.hopeless = hopeless

    def to_shoal(self) -> ShoalError:
        """The error for whoever called."""
        if self.hopeless is not None:
            return self.hopeless
        if self.unsent:
            return Unavailable(self.message)
        return Unavailable(f"{self.message}; it may have happened", sent=True)


def translate(error: Exception, server: Server, what: str) -> Broken:
    """What a failure of the way to the API means."""
    url = server.url
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        # Whatever was to be connected to. Others of this process may let go of theirs, so it is tried again.
        return Broken("there are no file descriptors left for a connection; raise `ulimit -n`", unsent=True)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why, remedy = _distrust(error.certificate_error)
        return _hopeless(FailedPrecondition(f"the certificate of {url} is not trusted ({why}); {remedy}", state="tls"))
    if isinstance(error, ssl.SSLError | aiohttp.ClientSSLError):
        told = getattr(error, "strerror", None) or error
        return _hopeless(FailedPrecondition(f"{url} does not speak TLS ({told}); is it http://?", state="tls"))
    if isinstance(error, aiohttp.InvalidURL):
        return _hopeless(InvalidRequest(f"address: {url!r}, or the proxy on the way, is no URL", field="address"))
    if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        # Not the error's own text: it has the proxy's URL, in which a password may stand.
        said = error.strerror if isinstance(error, aiohttp.ClientProxyConnectionError) else f"HTTP {error.status}"
        remedy = "NO_PROXY names what to reach without it"
        return Broken(f"the proxy on the way to {url} does not let through ({said}); {remedy}", unsent=True)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        # A proxy's, where there is one.
        return Broken(f"{url}: there is no host {error.host}, or no name server tells of it", unsent=True)
    if isinstance(error, aiohttp.ClientConnectorError):
        return Broken(f"no API answers at {url} ({error.strerror}); is it up, and the port right?", unsent=True)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        scheme = url.partition(":")[0]
        return Broken(
            f"no API answers at {url} within {CONNECT_S:g} s; are {scheme}, host and port right?", unsent=True
        )
    if isinstance(error, TimeoutError):
        return Broken(f"{url} did not answer {what} in time", silence=True)
    return Broken(f"the connection to {url} broke ({str(error) or type(error).__name__})")


def _distrust(error: Exception) -> tuple[str, str]:
    """Why a certificate is not trusted, and what mends that."""
    why = getattr(error, "verify_message", "").rstrip(".") or str(error)
    match getattr(error, "verify_code", None):  # OpenSSL's numbers
        case 62 | 64:  # another host name, another address
            return why, "use a host name that it has"
        case 9 | 10:  # not yet valid, expired
            return why, "it must be renewed there, if this machine's clock is right"
        case _:
            return why, "name its CA's file as `ca=`, by --ca or in SHOAL_CA"


def _hopeless(error: ShoalError) -> Broken:
    return Broken(error.message, unsent=True, hopeless=error)


def not_shoal(message: str) -> FailedPrecondition:
    """What answered is no API of Shoal's."""
    return FailedPrecondition(message, state="not_shoal")


def new_request_id() -> str:
    return f"rq-{secrets.token_hex(8)}"


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body, which is not taken in where it is longer than `limit`."""
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
    except PackageNotFoundError:  # a tree that was never installed
        return "0"
