"""An admitted connection to a sandbox's agent, through its node's relay or anything else that carries frames."""

from __future__ import annotations

import asyncio
from typing import Any, Self, cast

from shoal.model import errors
from shoal.wire.exchanges import Exchange, Request
from shoal.wire.frame_sender import FrameSender
from shoal.wire.frames import MAX_STREAM, Decoder, Kind, encode
from shoal.wire.messages import check_hello, decode_reply, encode_hello, encode_request
from shoal.wire.sockets import cannot_reach, check_opening, parse_endpoint, tune
from shoal.wire.streams import Stream
from shoal.wire.tls import check_certificate, client_context

_CLOSE_S = 2.0
"""Seconds that a closing connection may take to send what is buffered."""

_INLINE = 64 << 10
"""Input up to this size is sent in the same write as its request."""

_FROM_AGENT = frozenset({Kind.REPLY, Kind.EVENT, Kind.DATA, Kind.ERRDATA, Kind.CREDIT})
_WRITE_HIGH = 1 << 20


class Connection(asyncio.BufferedProtocol):
    """Many streams over one connection; belongs to the event loop that opened it.

    Over a socket it is the event loop's protocol itself, so received bytes are copied only once. With any other
    `FrameSender`, received bytes are passed to `received`.

    If the connection breaks, every open stream fails with `Unavailable`; if the other side violates the protocol, with
    `Internal`. It never reconnects: open another one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.congested = False
        self._sender: FrameSender | None = None
        self._decoder = Decoder()
        self._exchanges: dict[int, Exchange] = {}
        self._last_id = 0
        self._error: errors.ShoalError | None = None
        self._admitted: asyncio.Future[None] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()

    # Opening and closing

    @classmethod
    async def open(cls, address: str, token: str, *, wait_s: float = 0, timeout_s: float = 10) -> Self:
        """Connects to the relay at `address` (see `grants.endpoint`) and waits until it admits the connection.

        `wait_s`: how long the relay may wait for the container's agent (at most 60). `timeout_s`: for all the rest.
        Raises `Unauthenticated`, `NotFound` (no such container on that node), `Unavailable` (no relay or no agent: try
        again), `DeadlineExceeded`.
        """
        relay = parse_endpoint(address)
        check_opening(token, wait_s)
        loop = asyncio.get_running_loop()
        connection = cls(loop)
        try:
            async with asyncio.timeout(timeout_s + wait_s):
                secure = client_context() if relay.fingerprint else None
                transport, _ = await loop.create_connection(lambda: connection, relay.host, relay.port, ssl=secure)
                if secure is not None:
                    check_certificate(transport.get_extra_info("ssl_object").getpeercert(binary_form=True), relay)
                connection.write(encode(Kind.HELLO, 0, encode_hello(token, wait_s)))
                await connection._admitted
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"the relay at {relay.host}:{relay.port} did not answer within {timeout_s + wait_s:g} s"
            ) from None
        except OSError as error:
            raise cannot_reach(relay, error) from None
        except UnicodeError:
            raise errors.InvalidRequest(f"address has no possible host name: {address!r}", field="address") from None
        finally:
            if not connection._admitted.done() or connection._admitted.cancelled() or connection._admitted.exception():
                connection.abort()
        return connection

    def send_through(self, sender: FrameSender) -> None:
        """Uses `sender`, which has already admitted us, for a new connection.

        Its owner calls `received` with what arrives, `pause_writing` and `resume_writing` when its buffer is full or
        empty again, and `connection_lost` at its end.
        """
        self._sender = sender
        self._admitted.set_result(None)

    @property
    def closed(self) -> bool:
        """Whether it is closed, broken or lost."""
        return self._error is not None

    @property
    def open_streams(self) -> int:
        """The number of requests that wait for their reply."""
        return len(self._exchanges)

    def close(self) -> None:
        """Sends what is buffered, within 2 s, and closes. Open streams fail with `Unavailable`. May be repeated."""
        if self._error is None:
            self._end(errors.Unavailable("connection to the sandbox was lost: closed on this side"))
            if self._sender is not None:
                self._sender.close()
                self.loop.call_later(_CLOSE_S, self._sender.abort)

    def abort(self) -> None:
        """Closes at once, without sending what is buffered."""
        self._end(errors.Unavailable("connection to the sandbox was lost: closed on this side"))
        if self._sender is not None:
            self._sender.abort()

    async def wait_closed(self) -> None:
        """Returns once the connection is closed."""
        if self._sender is not None:
            await asyncio.shield(self._gone)

    # Streams

    async def request(
        self,
        op: dict[str, Any],
        *,
        data: memoryview | None = None,
        timeout_s: float | None = None,
        idle_s: float | None = None,
    ) -> dict[str, Any]:
        """Sends a request with its input, if any, and returns the reply's `ok`.

        Cancelling the call cancels the stream. Raises `DeadlineExceeded` after `timeout_s`, or after `idle_s` in which
        nothing moved.
        """
        exchange = Request(self)
        self.start(exchange, op, data)
        if idle_s is not None:
            return await exchange.reply_while_moving(idle_s)
        return await exchange.reply(timeout_s)

    def stream(self, op: dict[str, Any], *, lossy: bool = False) -> Stream:
        """Opens a stream, for reading items and sending data. `lossy`: see `Stream`."""
        stream = Stream(self, lossy=lossy)
        self.start(stream, op)
        return stream

    def start(
        self, exchange: Exchange, op: dict[str, Any], data: memoryview | None = None, window: int | None = None
    ) -> None:
        """Opens `exchange`. `data`: its input. `window`: bytes that may arrive."""
        request = encode_request(op)
        if self._error is not None:
            raise _copy(self._error)
        self._last_id = number = self._last_id + 1
        if number > MAX_STREAM:
            self._fail(
                errors.Unavailable("connection to the sandbox was lost: it has used up its stream ids; open another")
            )
            raise _copy(cast(errors.ShoalError, self._error))
        exchange.id = number
        self._exchanges[number] = exchange
        frames = encode(Kind.OPEN, number, request)
        if data is not None and len(data) <= _INLINE:
            exchange.credit -= len(data)
            exchange.sent += len(data)
            frames += (encode(Kind.DATA, number, data) if data else b"") + encode(Kind.END, number)
            data = None
        self.write(frames)
        if window is not None and window > exchange.window:
            exchange.owed = window - exchange.window
            exchange.flush_credit()
        if data is not None:
            assert isinstance(exchange, Request)
            exchange.feed(data)

    def cancel(self, exchange: Exchange) -> None:
        """Tells the other side that nobody waits any more; later frames are dropped."""
        if self._exchanges.pop(exchange.id, None) is not None:
            self.write(encode(Kind.CANCEL, exchange.id))

    def write(self, data: bytes | memoryview) -> None:
        """Sends bytes, unless the connection is over."""
        if self._error is None and self._sender is not None:
            self._sender.write(data)

    # Called by the sender's owner; for a socket, by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        socket = cast(asyncio.Transport, transport)
        self._sender = socket
        if self._error is not None:
            socket.abort()
            return
        socket.set_write_buffer_limits(high=_WRITE_HIGH)
        tune(transport.get_extra_info("socket"), prompt_reader=True)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for kind, stream, payload in self._decoder.advance(nbytes):
                self._dispatch(kind, stream, payload)
        except errors.ShoalError as error:
            self._fail(error)

    def received(self, data: bytes) -> None:
        """Takes the next bytes, in pieces of any size, from something that is not a socket."""
        try:
            for kind, stream, payload in self._decoder.feed(data):
                self._dispatch(kind, stream, payload)
        except errors.ShoalError as error:
            self._fail(error)

    def eof_received(self) -> bool:
        self._fail(errors.Unavailable("connection to the sandbox was lost: closed by the other side"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(errors.Unavailable(f"connection to the sandbox was lost: {exc or 'closed by the other side'}"))
        if not self._gone.done():
            self._gone.set_result(None)

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False
        for exchange in tuple(self._exchanges.values()):
            exchange.on_writable()

    # Inside

    def _dispatch(self, kind: Kind, stream: int, payload: bytes) -> None:
        if self._error is not None:
            return
        if not self._admitted.done():
            if kind is not Kind.HELLO or stream != 0:
                raise errors.Internal("malformed hello from the relay: another frame came first")
            check_hello(payload)
            self._admitted.set_result(None)
            return
        if kind not in _FROM_AGENT:
            raise errors.Internal(f"malformed frame from the sandbox: {kind.name} is not for an agent to send")
        exchange = self._exchanges.get(stream)
        if exchange is None:
            return  # the frame crossed our CANCEL
        if kind is Kind.REPLY:
            reply = decode_reply(payload)
            del self._exchanges[stream]
            exchange.on_reply(reply)
        else:
            exchange.on_frame(kind, payload)

    def _fail(self, error: errors.ShoalError) -> None:
        """Ends the connection because of the other side, without sending what is buffered."""
        self._end(error)
        if self._sender is not None:
            self._sender.abort()

    def _end(self, error: errors.ShoalError) -> None:
        if self._error is not None:
            return
        self._error = error
        exchanges, self._exchanges = self._exchanges, {}
        for exchange in exchanges.values():
            exchange.on_lost(_copy(error))
        if not self._admitted.done():
            self._admitted.set_exception(_copy(error))
            self._admitted.exception()  # read it: if the caller has given up, nobody else does


def _copy(error: errors.ShoalError) -> errors.ShoalError:
    """A copy: one instance raised in many tasks would collect all their tracebacks."""
    return errors.error_from_dict(error.to_dict())
