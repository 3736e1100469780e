"""A WebSocket carried to a port in a sandbox: two connections, one on either side of us, whose messages are passed on.

Each hop answers its own pings and has its own compression (inside there is none). A side that is slow slows the other one; messages are bounded.
"""

from __future__ import annotations

import asyncio
import re
import traceback
from collections.abc import AsyncIterator, MutableMapping
from contextlib import suppress
from typing import Any

from websockets.client import ClientProtocol
from websockets.datastructures import Headers as HandshakeHeaders
from websockets.exceptions import InvalidStatus, ProtocolError
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import CLOSED, CONNECTING, OPEN, Event
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from shoal.cluster.api.processes.websockets import STALL_S, refusal
from shoal.cluster.api.request.streaming import first_to_end, sending
from shoal.cluster.api.tunnels.tunnel_http import Broken, Way
from shoal.cluster.api.tunnels.tunnel_visits import Headers
from shoal.model.errors import DeadlineExceeded, InvalidRequest, QuotaExceeded, ShoalError, Unavailable
from shoal.model.http import SUBPROTOCOL
from shoal.wire.budget import Budget

MAX_MESSAGE = 16 << 20
"""Bytes of one message of a server's; a client's are held to less where they come in."""

MAX_UNFINISHED = 64 << 20
"""Bytes that messages of all tunnels of a process may have before they are whole. Beyond it the tunnel with the largest is ended."""

HANDSHAKE_S = 30.0
CLOSE_S = 5.0
"""How long a side may take to agree to the end."""

_SLICE = 2 << 10
"""Bytes parsed at once: a flood of tiny frames must not keep other requests waiting."""

_COPIES = 2
"""How often a message is in memory while it is sent: as it came, and as what of its frame has not gone out."""

_MAX_HEAD = 64 << 10
_MAX_INTERIM = 16  # answers such as `103 Early Hints`
_INTERIM = re.compile(rb"HTTP/1\.1 1(?!01)[0-9]{2}[ \r]")

_NORMAL, _TOO_BIG, _INTERNAL = 1000, 1009, 1011
_UNSAID, _ABNORMAL = 1005, 1006
_GOING_AWAY = 1001


_unfinished = Budget(MAX_UNFINISHED)


class Denied(Exception):
    """The server inside would rather answer as to a plain request."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


class SocketCarrier:
    """One WebSocket over one connection."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._writing = asyncio.Lock()
        self._message: list[bytes] = []
        self._text = False
        self._client_gone = False
        self._share = _unfinished.share()
        self._given_up = asyncio.Event()
        uri = WebSocketURI(False, "localhost", way.visit.target.port, "/", "")
        offered = [Subprotocol(name) for name in way.visit.subprotocols] or None
        self._inside = ClientProtocol(uri, subprotocols=offered, max_size=MAX_MESSAGE)

    async def carry(self) -> None:
        """Returns once both sides have ended. Raises `Denied`, `InvalidRequest`, `Unavailable` before the client was accepted."""
        try:
            await self._carry()
        finally:
            self._share.release()

    async def _carry(self) -> None:
        events = await self._open()
        accepted = self._inside.subprotocol or (SUBPROTOCOL if self._way.visit.accepts_api else None)
        response = next(event for event in events if isinstance(event, Response))
        await self._way.send(
            {
                "type": "websocket.accept",
                "subprotocol": accepted,
                "headers": self._way.answer_headers(_raw(response.headers)),
            }
        )
        rest = [event for event in events if event is not response]
        try:
            await self._run(rest)
        except ShoalError as error:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._close(refusal(error), error.code)
            raise Broken(str(error)) from None

    async def _run(self, events: list[Event]) -> None:
        try:
            await first_to_end(self._exchange(events), self._way.check(), self._way.gone(), self._largest())
        except Exception as error:
            _empty(error)
            raise

    async def _exchange(self, events: list[Event]) -> None:
        outward = asyncio.ensure_future(self._outward(events))
        inward = asyncio.ensure_future(self._inward())
        try:
            done, _ = await asyncio.wait((outward, inward), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if outward not in done:
                # The client has ended: the server may still have a word to say on that.
                await asyncio.wait([outward], timeout=CLOSE_S)
        finally:
            for task in (outward, inward):
                task.cancel()
            await asyncio.gather(outward, inward, return_exceptions=True)

    async def _largest(self) -> None:
        """Raises where others need the room that this unfinished message takes."""
        await self._given_up.wait()
        raise QuotaExceeded("messages that are not finished hold too much memory, and this is the largest")

    def give_up(self, error: Unavailable) -> None:
        """As `Gathering` has it."""
        self._message.clear()
        self._given_up.set()

    async def _open(self) -> list[Event]:
        """The handshake with the server inside; what came behind its answer comes along."""
        request = self._inside.connect()
        request.path = self._way.visit.resource.decode("latin-1")
        headers = HandshakeHeaders()
        headers["Host"] = self._way.visit.host
        for name, value in request.headers.raw_items():
            if name.lower() != "host":
                headers[name] = value
        for key, content in self._way.visit.headers:
            if key not in (b"host", b"content-length") and not key.startswith(b"sec-websocket-"):
                headers[key.decode("latin-1")] = content.decode("latin-1")
        request.headers = headers
        try:
            self._inside.send_request(request)
        except UnicodeEncodeError:
            raise InvalidRequest("the request's headers or path cannot be passed on: they are not ASCII") from None
        events: list[Event] = []
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await self._flush()
                data = await self._answer()
                while True:
                    async for found in self._events(data):
                        events += found
                    if self._inside.state is not CONNECTING or self._inside.handshake_exc is not None:
                        break
                    data = await self._way.stream.read()
        except TimeoutError:
            raise Unavailable(
                f"what listens on port {self._way.visit.target.port} did not answer the handshake in time"
            ) from None
        refused = self._inside.handshake_exc
        if isinstance(refused, InvalidStatus) and refused.response.status_code >= 200:
            raise Denied(refused.response)
        if self._inside.handshake_exc is not None:
            raise Unavailable(
                f"what listens on port {self._way.visit.target.port} in the sandbox is no proper WebSocket server"
            )
        return events

    async def _answer(self) -> bytes:
        """The server's answer, or its beginning. Interim ones before it are passed over, as HTTP wants it."""
        data = await self._way.stream.read()
        for _ in range(_MAX_INTERIM):
            while b"HTTP/1.1 1".startswith(data[:10]) and data[:12] != b"HTTP/1.1 101" and b"\r\n\r\n" not in data:
                more = await self._way.stream.read()
                if not more or len(data) > _MAX_HEAD:
                    return data + more
                data += more
            if not _INTERIM.match(data):
                break
            data = data.partition(b"\r\n\r\n")[2] or await self._way.stream.read()
        return data

    # From the server to the client

    async def _outward(self, events: list[Event]) -> None:
        """Until the server's end, which is passed on."""
        await self._deliver(events)
        try:
            while self._inside.state is not CLOSED and self._inside.close_rcvd is None:
                async for found in self._events(await self._way.stream.read()):
                    await self._deliver(found)
        except Unavailable:
            pass  # the connection broke, which is no goodbye
        await self._close(*_ending(self._inside))
        # The server closes first; if we did, our answer to its goodbye might get lost.
        with suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(CLOSE_S):
                while self._inside.state is not CLOSED and await self._way.stream.read():
                    pass

    async def _deliver(self, events: list[Event]) -> None:
        for event in events:
            if not isinstance(event, Frame) or event.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                continue
            if event.opcode is not Opcode.CONT:
                self._text = event.opcode is Opcode.TEXT
            self._message.append(bytes(event.data))
            event.data = b""  # once in memory is enough
            if event.fin and not self._given_up.is_set():
                data = b"".join(self._message)
                self._message.clear()
                self._share.release()
                if not self._client_gone:
                    with sending.holding(_COPIES * len(data), self._way.taken):
                        await self._way.send(_message(data, self._text))
        if events and not self._message:
            self._share.release()

    async def _close(self, code: int, reason: str) -> None:
        """Ends the client's side, unless it has ended."""
        if not self._client_gone:
            self._client_gone = True
            await self._way.send({"type": "websocket.close", "code": code, "reason": reason})

    async def _events(self, data: bytes) -> AsyncIterator[list[Event]]:
        """What `data` holds, piece by piece; without data, the end of the connection."""
        if not data:
            self._inside.receive_eof()
            await self._flush()
            yield self._inside.events_received()
        for start in range(0, len(data), _SLICE):
            piece = data[start : start + _SLICE]
            self._inside.receive_data(piece)
            self._share.add(len(piece), self)  # until it turns out to be a whole message, or none at all
            await self._flush()
            yield self._inside.events_received()
            await asyncio.sleep(0)

    # From the client to the server

    async def _inward(self) -> None:
        """Until the client's end, which is passed on."""
        while True:
            message = await self._way.receive()
            if message["type"] == "websocket.disconnect":
                self._client_gone = True
                return await self._end(message.get("code", _UNSAID), message.get("reason") or "")
            text: str | None = message.get("text")
            data = message.get("bytes") if text is None else text.encode("utf-8", "replace")
            if data is None:
                continue
            if len(data) > MAX_MESSAGE:
                await self._close(_TOO_BIG, "message too big")
                return await self._end(_GOING_AWAY, "")
            try:
                if text is None:
                    self._inside.send_binary(data)
                else:
                    self._inside.send_text(data)
                async with asyncio.timeout(STALL_S):
                    await self._flush()
            except TimeoutError:
                raise DeadlineExceeded(f"the server in the sandbox took nothing for {STALL_S:g} s") from None
            except (ProtocolError, Unavailable):
                # The server has just ended; how it did, the other direction passes on.
                await asyncio.Event().wait()

    async def _end(self, code: int, reason: str) -> None:
        if self._inside.state is not OPEN:
            return
        try:
            if code == _UNSAID:
                self._inside.send_close()
            else:
                self._inside.send_close(_GOING_AWAY if code == _ABNORMAL else code, reason)
        except ProtocolError:  # a code that must not go over a wire
            self._inside.fail(_GOING_AWAY)
        try:
            await self._flush()
        except ShoalError:
            pass  # it has gone, too

    async def _flush(self) -> None:
        async with self._writing:
            pieces = self._inside.data_to_send()
            if data := b"".join(pieces):
                await self._way.stream.write(data)
            if pieces and not pieces[-1]:  # its way to say that no more will come
                await self._way.stream.write_eof()


def _empty(error: BaseException | None) -> None:
    """Empties the frames that an error came through. They hold a message, and the task that holds the error: all that would stay until the
    collector of cycles comes by."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _ending(inside: ClientProtocol) -> tuple[int, str]:
    """How the server's side ended, as a client may be told."""
    if inside.close_rcvd is not None:
        code = int(inside.close_rcvd.code)
        return (_NORMAL if code == _UNSAID else code), inside.close_rcvd.reason
    if inside.close_sent is not None and inside.close_sent.code == _TOO_BIG:
        return _TOO_BIG, "message too big"
    return _INTERNAL, "the server in the sandbox went away"


def _message(data: bytes, text: bool) -> MutableMapping[str, Any]:
    if text:
        return {"type": "websocket.send", "text": data.decode("utf-8", "replace")}
    return {"type": "websocket.send", "bytes": data}


def _raw(headers: HandshakeHeaders) -> Headers:
    return [(name.lower().encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.raw_items()]


def denial(error: Denied) -> tuple[int, Headers, bytes]:
    """The answer of a server that wants no WebSocket: status, headers, body."""
    response = error.response
    headers = [pair for pair in _raw(response.headers) if pair[0] != b"content-length"]
    return response.status_code, headers, bytes(response.body or b"")
