"""The client's end of a stream: the base class, a request with one reply, and a request that gathers output in memory.

The connection calls these objects back, so a request costs no task. Credit bounds what the other side may send. More
than that, or an unexpected frame, raises `Internal`, which ends the connection.
"""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any, Protocol

from shoal.model import errors
from shoal.wire.frames import Kind, decode_credit, encode, encode_credit, encode_header

if TYPE_CHECKING:
    from shoal.wire.budget import Share

WINDOW = 1 << 20
"""The credit, in bytes, with which each direction of each stream starts."""

_CREDIT_STEP = WINDOW // 4
"""Credit is returned in steps of this many bytes: few frames, and the sender never stalls."""

_SEND_SIZE = 256 << 10
_SEND_AT_LEAST = 64 << 10
_COPY_BELOW = 16 << 10
"""Payloads up to this size are copied behind their header; longer ones are written as they are."""


class Multiplexer(Protocol):
    """The connection, as its streams see it."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    @property
    def congested(self) -> bool:
        """Whether the send buffer is full."""

    def write(self, data: bytes | memoryview) -> None:
        """Sends bytes, unless the connection is over."""

    def cancel(self, exchange: Exchange) -> None:
        """Closes the exchange's stream and tells the other side."""


class Exchange:
    """One open stream: what the connection calls, and the credit of both directions. Subclasses handle what arrives."""

    __slots__ = ("connection", "credit", "id", "owed", "sent", "window")

    def __init__(self, connection: Multiplexer, window: int = WINDOW) -> None:
        self.connection = connection
        self.id = 0  # set by the connection on opening
        self.credit = WINDOW  # bytes that may still be sent
        self.sent = 0
        self.window = window  # bytes that may still arrive
        self.owed = 0  # bytes consumed, whose credit is not yet returned

    def on_frame(self, kind: Kind, payload: bytes) -> None:
        """A DATA, ERRDATA, EVENT or CREDIT frame of this stream."""
        if kind is Kind.CREDIT:
            self.credit += decode_credit(payload)
            self.on_credit()
            return
        if kind is Kind.EVENT:
            self.on_event(payload)
            return
        self.window -= len(payload)
        if self.window < 0:
            raise errors.Internal("the sandbox sent more than it was allowed to")
        self.on_data(kind, payload)

    def give_back(self, count: int) -> None:
        """Marks `count` bytes as consumed, so that the other side may send as many more."""
        self.owed += count
        if self.owed >= _CREDIT_STEP:
            self.flush_credit()

    def flush_credit(self) -> None:
        """Returns all owed credit at once."""
        if self.owed and not self.finished:
            self.connection.write(encode_credit(self.id, self.owed))
            self.window += self.owed
            self.owed = 0

    def may_send(self, view: memoryview) -> bool:
        """Whether to send some of `view` now: using tiny bits of credit would make ever smaller frames."""
        return self.credit >= min(len(view), _SEND_AT_LEAST) and not self.connection.congested

    def send_some(self, view: memoryview) -> memoryview:
        """Sends as much of `view` as fits a frame and the credit, which must not be 0; returns the rest."""
        count = min(len(view), self.credit, _SEND_SIZE)
        self.credit -= count
        self.sent += count
        if count <= _COPY_BELOW:
            self.connection.write(encode(Kind.DATA, self.id, view[:count]))
        else:
            self.connection.write(encode_header(Kind.DATA, self.id, count))
            self.connection.write(view[:count])
        return view[count:]

    @property
    def finished(self) -> bool:
        """Whether the stream is over, for any reason."""
        raise NotImplementedError

    def on_credit(self) -> None:
        """More may be sent."""

    def on_writable(self) -> None:
        """The connection's send buffer has room again."""

    def on_event(self, payload: bytes) -> None:
        raise errors.Internal("the sandbox sent an unexpected event")

    def on_data(self, kind: Kind, payload: bytes) -> None:
        raise errors.Internal("the sandbox sent unexpected data")

    def on_reply(self, reply: dict[str, Any] | errors.ShoalError) -> None:
        """The REPLY, which is the last frame."""
        raise NotImplementedError

    def on_lost(self, error: errors.ShoalError) -> None:
        """The connection broke, or the wait was given up. Nothing follows."""
        raise NotImplementedError


class Request(Exchange):
    """A stream that receives only its reply. It may send input, all of which is in memory."""

    __slots__ = ("_future", "_input", "_moved", "_seen", "_timer")

    def __init__(self, connection: Multiplexer, window: int = WINDOW) -> None:
        super().__init__(connection, window)
        self._future: asyncio.Future[dict[str, Any]] = connection.loop.create_future()
        self._input: memoryview | None = None
        self._moved = 0  # counts signs that the other side is alive
        self._seen = -1
        self._timer: asyncio.TimerHandle | None = None

    @property
    def finished(self) -> bool:
        return self._future.done()

    def feed(self, data: memoryview) -> None:
        """Sends `data` and then END, as credit allows."""
        self._input = data
        self._pump()

    async def reply(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The reply's `ok`; raises the reply's error. After `timeout_s`, cancels the stream: `DeadlineExceeded`."""
        if timeout_s is not None and not self._future.done():
            self._timer = self.connection.loop.call_later(timeout_s, self._expire, timeout_s)
        return await self._answer()

    async def reply_while_moving(self, idle_s: float) -> dict[str, Any]:
        """Like `reply`, but gives up only after `idle_s` in which nothing moved."""
        self._watch(idle_s)
        return await self._answer()

    async def _answer(self) -> dict[str, Any]:
        try:
            return await self._future
        except asyncio.CancelledError:
            self.connection.cancel(self)
            raise
        finally:
            self._input = None
            if self._timer is not None:
                self._timer.cancel()

    def on_credit(self) -> None:
        self._moved += 1
        if self._input is not None:
            self._pump()

    def on_writable(self) -> None:
        if self._input is not None:
            self._pump()

    def on_reply(self, reply: dict[str, Any] | errors.ShoalError) -> None:
        if self._future.done():
            return
        if isinstance(reply, errors.ShoalError):
            self._future.set_exception(reply)
        else:
            self._future.set_result(reply)

    def on_lost(self, error: errors.ShoalError) -> None:
        self.on_reply(error)

    def _pump(self) -> None:
        view = self._input
        assert view is not None
        while view:
            if self._future.done() or not self.may_send(view):
                self._input = view
                return
            view = self.send_some(view)
        self._input = None
        self.connection.write(encode(Kind.END, self.id))

    def _watch(self, idle_s: float) -> None:
        if self._moved == self._seen:
            self._expire(idle_s)
            return
        self._seen = self._moved
        self._timer = self.connection.loop.call_later(idle_s, self._watch, idle_s)

    def _expire(self, timeout_s: float) -> None:
        self.connection.cancel(self)
        self.on_lost(errors.DeadlineExceeded(f"the sandbox did not answer within {timeout_s:g} s"))


class Gather(Request):
    """A request whose DATA and ERRDATA are collected in memory, each up to `limit` bytes; more is a protocol error.

    `share`: counts the memory they use; its budget may have them dropped.
    """

    __slots__ = ("_errdata", "_limit", "_output", "_share")

    def __init__(self, connection: Multiplexer, limit: int, share: Share | None = None) -> None:
        super().__init__(connection)
        self._limit = limit
        self._share = share
        self._output = _Pile()
        self._errdata = _Pile()

    @property
    def output(self) -> bytes:
        """All of DATA."""
        return self._output.value()

    @property
    def errdata(self) -> bytes:
        """All of ERRDATA."""
        return self._errdata.value()

    def on_data(self, kind: Kind, payload: bytes) -> None:
        pile = self._output if kind is Kind.DATA else self._errdata
        if pile.size + len(payload) > self._limit:
            raise errors.Internal(f"the sandbox sent more than the {self._limit} bytes requested")
        pile.add(payload)
        if self._share is not None:
            self._share.add(len(payload), self)
        self._moved += 1
        self.give_back(len(payload))

    def on_reply(self, reply: dict[str, Any] | errors.ShoalError) -> None:
        if self._share is not None:
            self._share.settle()  # the answer is complete
        super().on_reply(reply)

    def give_up(self, error: errors.Unavailable) -> None:
        """Drops the collected output at once, and fails with `error`."""
        self._output, self._errdata = _Pile(), _Pile()
        self.connection.cancel(self)
        self.on_lost(error)


class _Pile:
    """A growing byte string.

    A single chunk is kept as it is. More go into a `BytesIO`, whose memory becomes the result without a copy: half the
    fresh memory, and half the page faults, of joining a list.
    """

    __slots__ = ("_first", "_store", "size")

    def __init__(self) -> None:
        self.size = 0
        self._first = b""
        self._store: io.BytesIO | None = None

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self._store is not None:
            self._store.write(chunk)
        elif not self._first:
            self._first = chunk
        else:
            self._store = io.BytesIO()
            self._store.write(self._first)
            self._store.write(chunk)
            self._first = b""

    def value(self) -> bytes:
        return self._first if self._store is None else self._store.getvalue()
