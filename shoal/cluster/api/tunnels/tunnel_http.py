"""One HTTP/1.1 request carried to a port in a sandbox, and its answer back: streamed both ways, nothing buffered but what is under way.

One connection for each request. Dialling costs 0.8 ms, and a connection that is kept would hold up every server inside that
serves one connection after another, as small ones do. What answers is hostile: its headers are bounded in size and in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import h11

from shoal.cluster.api.request.streaming import Taken, first_to_end, sending
from shoal.cluster.api.tunnels.tunnel_visits import Headers, Visit
from shoal.model.errors import InvalidRequest, ShoalError, Unavailable
from shoal.wire.bytestream import ByteStream

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

ANSWER_S = 300.0
"""How long a server may think before its answer begins, counted from the last byte of the request that it took; and how long it may take nothing
of the request."""

HEADERS_S = 10.0
"""How long an answer's headers may take from their first byte on."""

IDLE_S = 3600.0
"""How long an answer may pause: streams of events are quiet at times."""

CONTINUE_S = 1.0
"""How long a server may take to ask for the body of a request that waits for that; then it is sent unasked."""

MAX_HEADER_BYTES = 64 << 10
MAX_HEADERS = 256
_MAX_INTERIM = 16  # answers such as `103 Early Hints`
_SLICE = 16 << 10
"""Bytes parsed at once: other requests get their turn between them, whatever the bytes are made of."""


class Broken(Exception):
    """The answer broke off after its beginning had gone out; the client must see that it did."""


@dataclass(frozen=True, slots=True)
class Way:
    """Between a client, by `receive` and `send`, and what listens in the sandbox, by `stream`. `answer_headers` makes the headers of its
    answer fit for the client. `check` runs beside it, and ends it by raising. `gone` returns when the client has been gone for a while. `taken`
    tells how far the client is, where that is known."""

    visit: Visit
    stream: ByteStream
    receive: Receive
    send: Send
    answer_headers: Callable[[Headers], Headers]
    check: Callable[[], Coroutine[Any, Any, None]]
    gone: Callable[[], Coroutine[Any, Any, None]]
    taken: Taken | None


class Carrier:
    """One request over one connection."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
        self._unparsed = memoryview(b"")
        self._go_on = asyncio.Event()
        self._patience: asyncio.Timeout | None = None
        self._started = False

    async def carry(self) -> None:
        """Returns once the answer is with the client, or the client has gone. Raises `InvalidRequest`, `Unavailable` before anything of it is
        out, `Broken` afterwards."""
        await self._way.stream.write(self._request())
        try:
            await first_to_end(self._exchange(), self._way.check())
        except ShoalError as error:
            if self._started:
                raise Broken(str(error)) from None
            raise

    async def _exchange(self) -> None:
        answering = asyncio.ensure_future(self._answer())
        feeding = asyncio.ensure_future(self._feed())
        try:
            await asyncio.wait((answering, feeding), return_when=asyncio.FIRST_COMPLETED)
            if feeding.done() and not answering.done() and feeding.exception() is None:
                return  # the client has gone
            await answering
        finally:
            for task in (answering, feeding):
                task.cancel()
            await asyncio.gather(answering, feeding, return_exceptions=True)

    # The request

    def _request(self) -> bytes:
        headers = [*self._way.visit.headers, (b"connection", b"close")]
        if self._way.visit.chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        try:
            request = h11.Request(method=self._way.visit.method, target=self._way.visit.resource, headers=headers)
            data = self._http.send(request)
        except h11.LocalProtocolError as error:
            raise InvalidRequest(f"the request cannot be passed on: {error}") from None
        assert data is not None
        return data

    async def _feed(self) -> None:
        """The body into the sandbox; then waits for the client to go. Returns only when it has; where the server takes no more, never."""
        if (self._way.visit.header(b"expect") or b"").lower() == b"100-continue":
            with suppress(TimeoutError):
                async with asyncio.timeout(CONTINUE_S):
                    await self._go_on.wait()
        taking = True
        while True:
            message = await self._way.receive()
            if message["type"] == "http.disconnect":
                return
            if taking:
                taking = await self._pass_on(message.get("body", b""), last=not message.get("more_body", False))

    async def _pass_on(self, body: bytes, *, last: bool) -> bool:
        """Whether more may be sent."""
        try:
            if body:
                await self._write(h11.Data(data=body))
            if last:
                await self._write(h11.EndOfMessage())
        except (TimeoutError, Unavailable, h11.LocalProtocolError):
            return False  # it has read enough, and may still answer
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time() + ANSWER_S)
        return not last

    async def _write(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            # Meanwhile nobody hears whether the client is still there.
            async with asyncio.timeout(ANSWER_S):
                await self._way.stream.write(data)

    # The answer

    async def _answer(self) -> None:
        head = await self._head()
        headers = list(head.headers)
        if len(headers) > MAX_HEADERS or head.status_code > 599:
            raise _no_http(self._way.visit)
        await self._way.send(
            {
                "type": "http.response.start",
                "status": head.status_code,
                "headers": self._way.answer_headers([(name.lower(), value) for name, value in headers]),
            }
        )
        self._started = True
        while True:
            data, last = self._parsed()
            if data or last:
                with sending.holding(len(data)):
                    await self._way.send({"type": "http.response.body", "body": data, "more_body": not last})
            if last:
                return
            try:
                async with asyncio.timeout(IDLE_S):
                    await self._more()
            except TimeoutError:
                raise Unavailable("the answer stopped coming") from None

    async def _head(self) -> h11.Response:
        try:
            async with asyncio.timeout(ANSWER_S) as patience:
                return await self._patient_head(patience)
        except TimeoutError:
            port = self._way.visit.target.port
            raise _unsure(f"what listens on port {port} in the sandbox did not answer in time") from None
        finally:
            self._patience = None

    async def _patient_head(self, patience: asyncio.Timeout) -> h11.Response:
        now = asyncio.get_running_loop().time
        interim = 0
        self._patience = patience  # as long as nothing came, the request's progress gives it more time
        while True:
            event = self._next_event()
            if isinstance(event, h11.Response):
                return event
            if isinstance(event, h11.InformationalResponse) and interim < _MAX_INTERIM:
                interim += 1
                self._go_on.set()
                self._patience = patience
                patience.reschedule(now() + ANSWER_S)
            elif event is h11.NEED_DATA:
                await self._more()
                if self._patience is not None:
                    self._patience = None
                    patience.reschedule(now() + HEADERS_S)
            else:
                raise _no_http(self._way.visit)

    def _parsed(self) -> tuple[bytes, bool]:
        """The body out of what has come so far, and whether that is all of it."""
        pieces: list[bytes] = []
        while True:
            event = self._next_event()
            if isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return b"".join(pieces), True
            elif event is h11.NEED_DATA:
                return b"".join(pieces), False
            else:
                raise _no_http(self._way.visit)

    def _next_event(self) -> Any:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError:
            raise _no_http(self._way.visit) from None

    async def _more(self) -> None:
        """Hands more of what has come to the parser."""
        if self._unparsed:
            await asyncio.sleep(0)
        else:
            data = await self._way.stream.read()
            if not data:
                self._http.receive_data(b"")
                return
            self._unparsed = memoryview(data)
        self._http.receive_data(bytes(self._unparsed[:_SLICE]))
        self._unparsed = self._unparsed[_SLICE:]


def _no_http(visit: Visit) -> Unavailable:
    return _unsure(
        f"what listens on port {visit.target.port} in the sandbox gave no proper HTTP answer; is it a web server?"
    )


def _unsure(message: str) -> Unavailable:
    """For when the request has been sent: whether something came of it nobody knows."""
    error = Unavailable(message)
    error.retryable = False
    return error
