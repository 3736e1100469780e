"""WebSockets as the API's replicas serve them: uvicorn's, made fit for strangers.

uvicorn's own leaves a malformed handshake open and unanswered for ever; queues pongs without end for a client that reads nothing; cuts clients
whose pong is late because nobody took what they said before it; keeps what a client does not take until that hangs up; and does not tell an
application that is not asking for messages that its client has gone. What is done here about that leans on uvicorn's insides:
`tests/unit/api/test_websockets.py` holds each of them.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.server import ServerProtocol

from shoal.cluster.api.processes.websockets import GONE, TAKEN
from shoal.cluster.api.request.problems import document, from_http
from shoal.model.errors import Internal
from shoal.model.http import PROBLEM, REQUEST_ID

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent
    from websockets.http11 import Request, Response
    from websockets.typing import StatusLike

SILENCE_S = 100.0
"""How long a client may say nothing, not even a pong, though all that it said was taken and it takes all that it is sent."""

_MESSAGE_BYTES = 1 << 20
_REQUEST_ID = re.compile(rf"\r\nx-request-id: ({REQUEST_ID})\r\n".encode(), re.IGNORECASE)


class _Handshake(ServerProtocol):
    """Refuses with problem documents, as the API does. `request_id`: the client's own, where it sent one."""

    request_id = ""

    def reject(self, status: StatusLike, text: str) -> Response:
        response = super().reject(status, text)
        if text:  # else the application would rather say nothing
            code, detail = int(status), text.strip()
            # The response itself gets its header from whoever asked for it.
            headers = {"Allow": "GET"} if code == HTTPStatus.METHOD_NOT_ALLOWED else None
            error = Internal(detail) if code >= 500 else from_http(HTTPException(code, detail, headers))
            response.body = to_json(document(error, self.request_id))
            del response.headers["Content-Type"], response.headers["Content-Length"]
            response.headers["Content-Type"] = PROBLEM
            response.headers["Content-Length"] = str(len(response.body))
            response.headers["X-Request-Id"] = self.request_id
        return response


class ReplicaSockets(WebSocketsSansIOProtocol):
    """One connection that wants to be a WebSocket."""

    conn: _Handshake

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # No compression: one read of 64 KiB could be 64 MiB of messages.
        self.conn = _Handshake(max_size=self.config.ws_max_size, logger=self.conn.logger)
        self._gone = asyncio.Event()
        self._heard = 0.0
        self._waited = 0  # bytes that the kernel did not take at once

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        first = not self.handshake_initiated
        if first:
            named = _REQUEST_ID.search(data)
            self.conn.request_id = named[1].decode("ascii") if named else secrets.token_hex(10)
        super().data_received(data)
        if first and not self.handshake_initiated:
            self._refuse()

    def _refuse(self) -> None:
        """The first data is the whole request: one that comes to no event is no handshake. An answer may wait, but nobody sends it."""
        self.handshake_complete = self.close_sent = True
        answer = b"".join(self.conn.data_to_send())
        if not answer:
            why = "this is no proper WebSocket handshake: it is a GET without a body"
            answer = self.conn.reject(HTTPStatus.BAD_REQUEST, why).serialize()
        self.transport.write(answer)
        self.transport.close()

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            # The application begins in the loop's next turn.
            cast("dict[str, Any]", self.scope["extensions"]).update({GONE: self._gone, TAKEN: self._taken})

    def handle_ping(self) -> None:
        pongs = b"".join(self.conn.data_to_send())
        # Of several pings the last may be answered alone. The answer to a close may be among them.
        if self.writable.is_set() or self.conn.close_rcvd is not None:
            self.transport.write(pongs)

    def keepalive_timeout(self) -> None:
        late = self.read_paused or not self.writable.is_set() or self.loop.time() - self._heard < SILENCE_S
        if not late or self.close_sent or self.transport.is_closing():
            super().keepalive_timeout()
            return
        # Its pong waits behind what it said before, or our ping behind what it has not taken. Another ping finds out whether it is there.
        self.pong_timer = None
        self.pending_ping_payload = None
        self.schedule_ping()

    async def send(self, message: ASGISendEvent) -> None:
        """Returns once the client has taken most of it, and not only of what came before: until then it is in memory."""
        await self.writable.wait()
        before = self.transport.get_write_buffer_size()
        await super().send(message)
        if not self.writable.is_set():
            await asyncio.sleep(0)  # uvloop hands the kernel its part behind this turn
            self._waited += self.transport.get_write_buffer_size() - before
            await self.writable.wait()

    def _taken(self) -> int:
        return self._waited - self.transport.get_write_buffer_size()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        if not self.writable.is_set():
            # Each send waits until its message is taken: this one was given up. A mere close would keep it until the client hangs up.
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._gone.set()


OPTIONS: dict[str, Any] = {"ws": ReplicaSockets, "ws_max_size": _MESSAGE_BYTES, "server_header": False}
"""What replicas give uvicorn beside what Serve does."""
