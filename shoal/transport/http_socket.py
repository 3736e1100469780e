"""WebSockets to the API: they carry an agent's frames, or the bytes of a port.

Both are byte streams in binary messages. The server's first message is text: `{"ok": true}` or `{"error": problem}`.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable
from typing import Any

import aiohttp

from shoal.model.errors import (
    Internal,
    PermissionDenied,
    QuotaExceeded,
    SandboxNotFound,
    ShoalError,
    Unauthenticated,
    Unavailable,
)
from shoal.model.http import error_from_problem
from shoal.transport.http_calls import HttpCalls, new_request_id
from shoal.transport.http_errors import translate
from shoal.transport.loops import CLOSED, being_cancelled
from shoal.wire.bytestream import ByteStream
from shoal.wire.connection import Connection

MAX_MESSAGE = 256 << 10
"""Bytes in one message that is sent."""

_MAX_RECEIVED = 1 << 20
_OPEN_S = 20.0
"""How long the server's first message may take: the server waits for the sandbox's agent, too."""

_HEARTBEAT_S = 20.0
_CLOSE_S = 2.0
_HIGH, _LOW = 1 << 20, 256 << 10
"""Bytes that wait to be sent: above the first number the connection pauses, below the second it resumes."""

_REFUSED = {401: Unauthenticated, 403: PermissionDenied, 404: SandboxNotFound, 429: QuotaExceeded}


async def open_socket(calls: HttpCalls, path: str, *, heartbeat: bool) -> aiohttp.ClientWebSocketResponse:
    """A WebSocket that the server has accepted. Raises the server's error, or `Unavailable`.

    `heartbeat`: only for one that is always read. If its user may leave it unread, a missing answer means nothing.
    """
    request_id = new_request_id()
    pool = await calls.pools.get()
    try:
        async with asyncio.timeout(_OPEN_S):
            socket = await pool.long.ws_connect(
                calls.server.url + path,
                headers=calls.headers(request_id),
                max_msg_size=_MAX_RECEIVED,
                compress=0,
                autoping=True,
                heartbeat=_HEARTBEAT_S if heartbeat else None,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
            )
            try:
                _check_first(await socket.receive())
            except BaseException:
                await socket.close()
                raise
            return socket
    except ShoalError as error:
        error.fields.setdefault("request_id", request_id)
        raise
    except aiohttp.WSServerHandshakeError as error:
        kind = _REFUSED.get(error.status, Internal if error.status < 500 else Unavailable)
        raise kind(
            f"{calls.server.url} refuses the WebSocket (HTTP {error.status}); is the token right, and do all proxies "
            "before the API let WebSockets through?",
            request_id=request_id,
        ) from None
    except asyncio.CancelledError:
        if pool.long.closed and not being_cancelled():
            raise Unavailable(CLOSED, request_id=request_id) from None
        raise
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise translate(error, calls.server, "a WebSocket").to_shoal() from None


def _check_first(message: aiohttp.WSMessage) -> None:
    if message.type is aiohttp.WSMsgType.TEXT:
        said: Any = _parsed(message.data)
        if said.get("ok") is True:
            return
        problem = said.get("error")
        raise (
            error_from_problem(problem) if isinstance(problem, dict) else Internal("malformed opening of the WebSocket")
        )
    if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING):
        if message.data == 1008:
            raise PermissionDenied(f"the API closed the WebSocket: {message.extra or 'it may not be opened'}")
        raise Unavailable("the API closed the WebSocket before it was open")
    if message.type is aiohttp.WSMsgType.ERROR:
        raise Unavailable(f"the WebSocket to the API broke: {message.data}")
    raise Internal("malformed opening of the WebSocket: bytes came first")


def _parsed(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    return data if isinstance(data, dict) else {}


async def open_connection(calls: HttpCalls, path: str) -> Connection:
    """A connection to a sandbox's agent over a WebSocket."""
    connection = Connection(asyncio.get_running_loop())
    SocketCarrier(await open_socket(calls, path, heartbeat=True), connection)
    return connection


class SocketCarrier:
    """Carries a connection over an open WebSocket, until that ends. One task receives; another sends what was written
    meanwhile in as few messages as possible."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, connection: Connection) -> None:
        self._socket = socket
        self._connection = connection
        self._waiting: deque[bytes | memoryview] = deque()
        self._size = 0
        self._closing = False
        self._begun = False
        self._more: asyncio.Future[None] | None = None
        connection.send_through(self)
        self._sending = connection.loop.create_task(self._send())
        self._receiving = connection.loop.create_task(self._receive())

    def write(self, data: bytes | memoryview) -> None:
        if self._closing or not data:
            return
        # The owner of a view may change its memory after this call.
        self._waiting.append(data if isinstance(data, bytes) else bytes(data))
        self._size += len(data)
        if self._size > _HIGH and not self._connection.congested:
            self._connection.pause_writing()
        self._wake()

    def close(self) -> None:
        self._closing = True
        self._wake()

    def abort(self) -> None:
        self._waiting.clear()
        self._size = 0
        self._closing = True
        if self._begun:
            self._sending.cancel()  # the server may take nothing any more
        # If it has not run yet, cancelling it would leave the socket open; it will find nothing to send and close it.

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    async def _send(self) -> None:
        self._begun = True
        try:
            while True:
                while not self._waiting:
                    if self._closing:
                        return
                    self._more = self._connection.loop.create_future()
                    await self._more
                await self._socket.send_bytes(self._next_message())
                if self._connection.congested and self._size < _LOW:
                    self._connection.resume_writing()
        except (aiohttp.ClientError, OSError):
            pass  # the receiving task notices, too, and says why
        finally:
            self._closing = True
            await self._close_socket()

    async def _close_socket(self) -> None:
        """Ends the receiving task, and waits a moment for the server's close message."""
        try:
            await self._socket.close()
        except asyncio.CancelledError:
            # As at the end of the event loop. Where it still waited for the receiving task, aiohttp has closed nothing.
            await self._socket.close()
            raise

    def _next_message(self) -> bytes:
        """The next message: as many waiting bytes as fit."""
        pieces: list[bytes | memoryview] = []
        room = MAX_MESSAGE
        while self._waiting and room:
            piece = self._waiting.popleft()
            if len(piece) > room:
                view = memoryview(piece)
                self._waiting.appendleft(view[room:])
                piece = view[:room]
            room -= len(piece)
            pieces.append(piece)
        self._size -= MAX_MESSAGE - room
        only = pieces[0]
        return only if len(pieces) == 1 and isinstance(only, bytes) else b"".join(pieces)

    async def _receive(self) -> None:
        lost: Exception | None = None
        try:
            while True:
                message = await self._socket.receive()
                if message.type is not aiohttp.WSMsgType.BINARY:
                    lost = _end_of(message, self._socket.close_code)
                    return
                self._connection.received(message.data)
        finally:
            self._closing = True
            self._waiting.clear()
            self._wake()
            await asyncio.wait([self._sending])
            self._connection.connection_lost(lost)


class SocketStream(ByteStream):
    """Bytes of a port over an open WebSocket; `{"eof": true}` as text is a half-close."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ended = False

    async def read(self) -> bytes:
        while not self._ended:
            message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                if message.data:
                    data: bytes = message.data
                    return data
            elif message.type is aiohttp.WSMsgType.TEXT and _parsed(message.data).get("eof") is True:
                self._ended = True
            else:
                broken = _end_of(message, self._socket.close_code)
                if broken is not None:
                    raise Unavailable(f"the connection into the sandbox is broken: {broken}")
                self._ended = True
        return b""

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), MAX_MESSAGE):
            await self._sent(self._socket.send_bytes(data[start : start + MAX_MESSAGE]))

    async def write_eof(self) -> None:
        await self._sent(self._socket.send_str('{"eof": true}'))

    async def close(self) -> None:
        self._ended = True
        await self._socket.close()

    async def _sent(self, sending: Awaitable[None]) -> None:
        try:
            await sending
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"the connection into the sandbox is broken: {error}") from None


def _end_of(message: aiohttp.WSMessage, code: int | None) -> Exception | None:
    """Why a WebSocket ended; None if the other side closed it normally."""
    if message.type is aiohttp.WSMsgType.TEXT:
        problem = _parsed(message.data).get("error")
        return (
            error_from_problem(problem) if isinstance(problem, dict) else Internal("an unexpected message of the API's")
        )
    if message.type is aiohttp.WSMsgType.ERROR and isinstance(message.data, Exception):
        return message.data
    return None if code == 1000 else ConnectionError(f"the API closed it (code {code})")
