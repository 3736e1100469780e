"""The client's end of a stream, in three shapes: one reply, output gathered in memory, items taken one by one.

All are driven by the connection's callbacks, so that a request costs no task. What the other side may send is bounded by
the credit that it was given; more than that, or a frame that has no place, raises `Internal`, which ends the connection.
"""

from __future__ import annotations

import asyncio
import io
from collections import deque
from typing import TYPE_CHECKING, Any

from shoal.model import errors
from shoal.wire.frames import Kind, decode_credit, encode, encode_credit, encode_header
from shoal.wire.messages import decode_object

if TYPE_CHECKING:
    from shoal.wire.connection import Connection

WINDOW = 1 << 20
"""The credit, in bytes, with which each direction of each stream starts."""

_CREDIT_STEP = WINDOW // 4
"""Credit is given back in steps of so many bytes: few frames, and the sender never stands still."""

_SEND_SIZE = 256 << 10
_COPY_BELOW = 16 << 10
"""Payloads up to this are copied behind their header, longer ones are handed to the transport as they are."""

_MAX_BACKLOG = 4 << 20
"""Bytes of events that may wait for their consumer. Events are outside the credit."""

_EVENT_COST = 128
"""What an event is taken to weigh beside its bytes, so that a flood of tiny ones is bounded too."""

_MERGE_BELOW = 4096
"""Chunks are merged up to this: a million chunks of one byte must not weigh a hundred million."""


class Exchange:
    """One open stream: what the connection calls, and the two credits. The subclasses say what becomes of what comes."""

    __slots__ = ("connection", "credit", "id", "owed", "sent", "window")

    def __init__(self, connection: Connection, window: int = WINDOW) -> None:
        self.connection = connection
        self.id = 0  # the connection gives it on opening
        self.credit = WINDOW  # bytes that may still be sent
        self.sent = 0
        self.window = window  # bytes that may still come
        self.owed = 0  # bytes consumed and not yet given back

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
        """Notes `count` bytes as consumed; the other side may send as many more."""
        self.owed += count
        if self.owed >= _CREDIT_STEP:
            self.flush_credit()

    def flush_credit(self) -> None:
        """Tells the other side at once how much was consumed."""
        if self.owed and not self.finished:
            self.connection.write(encode_credit(self.id, self.owed))
            self.window += self.owed
            self.owed = 0

    def send_some(self, view: memoryview) -> memoryview:
        """Sends as much of `view` as goes into a frame and into the credit, of which there is some; returns the rest."""
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
        """Whether the stream is over, in whatever way."""
        raise NotImplementedError

    def on_credit(self) -> None:
        """More may be sent."""

    def on_writable(self) -> None:
        """The connection takes more again."""

    def on_event(self, payload: bytes) -> None:
        raise errors.Internal("the sandbox sent an event where none has a place")

    def on_data(self, kind: Kind, payload: bytes) -> None:
        raise errors.Internal("the sandbox sent data where none has a place")

    def on_reply(self, reply: dict[str, Any] | errors.ShoalError) -> None:
        """The REPLY; nothing comes after it."""
        raise NotImplementedError

    def on_lost(self, error: errors.ShoalError) -> None:
        """The connection broke, or the wait was given up; nothing comes after it."""
        raise NotImplementedError


class Request(Exchange):
    """A stream that brings nothing but its reply. It may take input with it, all of which is at hand."""

    __slots__ = ("_future", "_input", "_moved", "_seen", "_timer")

    def __init__(self, connection: Connection, window: int = WINDOW) -> None:
        super().__init__(connection, window)
        self._future: asyncio.Future[dict[str, Any]] = connection.loop.create_future()
        self._input: memoryview | None = None
        self._moved = 0  # grows with all that shows that the other side is alive
        self._seen = -1
        self._timer: asyncio.TimerHandle | None = None

    @property
    def finished(self) -> bool:
        return self._future.done()

    def feed(self, data: memoryview) -> None:
        """Sends `data`, and then END, as credit comes."""
        self._input = data
        self._pump()

    async def reply(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The reply's `ok`, or the error that it tells, raised. Giving up waiting (`DeadlineExceeded`) cancels the stream."""
        if timeout_s is not None and not self._future.done():
            self._timer = self.connection.loop.call_later(timeout_s, self._expire, timeout_s)
        return await self._answer()

    async def reply_while_moving(self, idle_s: float) -> dict[str, Any]:
        """As `reply`, given up only when nothing has moved for so long."""
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
            if not self.credit or self.connection.congested or self._future.done():
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
    """A request whose DATA and ERRDATA are gathered in memory, each up to `limit` bytes; more is a breach."""

    __slots__ = ("_errdata", "_limit", "_output")

    def __init__(self, connection: Connection, limit: int, window: int = WINDOW) -> None:
        super().__init__(connection, window)
        self._limit = limit
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
            raise errors.Internal(f"the sandbox sent more than the {self._limit} bytes that were asked for")
        pile.add(payload)
        self._moved += 1
        self.give_back(len(payload))


class _Pile:
    """Bytes that grow.

    One chunk stays what it is. More go into a `BytesIO`, which grows without being copied and gives its memory away as the
    result: half the fresh memory, and so half the page faults, of a list that is joined in the end.
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


class Stream(Exchange):
    """A stream whose items are taken one by one: `async for` gives `bytes` for DATA and a dict for an EVENT, in order.

    An item counts as consumed when the next one is asked for; only then may the other side send more. One consumer.
    `lossy`: events that the consumer is too slow for become one `{"overflow": true}`; otherwise they fail the stream.
    """

    __slots__ = ("_backlog", "_error", "_items", "_lossy", "_reply", "_taken", "_waiters")

    def __init__(self, connection: Connection, *, lossy: bool = False) -> None:
        super().__init__(connection)
        self._lossy = lossy
        self._items: deque[tuple[Kind, bytes]] = deque()
        self._backlog = 0
        self._taken = 0
        self._reply: dict[str, Any] | None = None
        self._error: errors.ShoalError | None = None
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def finished(self) -> bool:
        return self._reply is not None or self._error is not None

    # Receiving

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes | dict[str, Any]:
        item = await self.receive()
        if item is None:
            raise StopAsyncIteration
        return item

    async def receive(self, idle_s: float | None = None) -> bytes | dict[str, Any] | None:
        """The next item, None after the last; raises what ended the stream, and `DeadlineExceeded` after `idle_s` of silence."""
        if self._taken:
            self.give_back(self._taken)
            self._taken = 0
        while not self._items:
            if self._error is not None:
                raise errors.error_from_dict(self._error.to_dict())
            if self._reply is not None:
                return None
            await self._changed(idle_s)
        kind, payload = self._items.popleft()
        if kind is Kind.EVENT:
            self._backlog -= len(payload) + _EVENT_COST
            return decode_object(payload, "event")
        self._taken = len(payload)
        return payload

    async def reply(self, idle_s: float | None = None) -> dict[str, Any]:
        """The reply's `ok`, or the error that it tells, raised."""
        while not self.finished:
            await self._changed(idle_s)
        if self._error is not None:
            raise errors.error_from_dict(self._error.to_dict())
        assert self._reply is not None
        return self._reply

    # Sending

    async def send(self, data: bytes | bytearray | memoryview, idle_s: float | None = None) -> None:
        """Sends `data` as credit comes. Raises what ended the stream; a reply that came early is no error, the rest is dropped."""
        view = memoryview(data).cast("B")
        while view:
            if self._error is not None:
                raise errors.error_from_dict(self._error.to_dict())
            if self._reply is not None:
                return
            if not self.credit or self.connection.congested:
                await self._changed(idle_s)
                continue
            view = self.send_some(view)

    def end(self) -> None:
        """No more will be sent."""
        if not self.finished:
            self.connection.write(encode(Kind.END, self.id))

    def cancel(self) -> None:
        """Done with the stream: what was consumed is told, what waits is dropped. Again is harmless."""
        if self.finished:
            self._items.clear()
            return
        self.owed += self._taken
        self._taken = 0
        self.flush_credit()
        self.connection.cancel(self)
        self._items.clear()
        self.on_lost(errors.FailedPrecondition("the stream was closed by its reader", state="closed"))

    # What the connection calls

    def on_data(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.ERRDATA:
            raise errors.Internal("the sandbox sent standard error where it has no place")
        if not payload:
            return
        items = self._items
        if items and items[-1][0] is Kind.DATA and len(items[-1][1]) + len(payload) <= _MERGE_BELOW:
            items[-1] = (Kind.DATA, items[-1][1] + payload)
        else:
            items.append((Kind.DATA, payload))
        self._notify()

    def on_event(self, payload: bytes) -> None:
        cost = len(payload) + _EVENT_COST
        if self._backlog + cost <= _MAX_BACKLOG:
            self._backlog += cost
            self._items.append((Kind.EVENT, payload))
        elif not self._lossy:
            raise errors.Internal(f"the sandbox sent more than {_MAX_BACKLOG} bytes of events that nobody took")
        elif self._items[-1][1] is not _OVERFLOW:
            self._backlog += len(_OVERFLOW) + _EVENT_COST
            self._items.append((Kind.EVENT, _OVERFLOW))
        self._notify()

    def on_credit(self) -> None:
        self._notify()

    def on_writable(self) -> None:
        self._notify()

    def on_reply(self, reply: dict[str, Any] | errors.ShoalError) -> None:
        if isinstance(reply, errors.ShoalError):
            self._error = reply
        else:
            self._reply = reply
        self._notify()

    def on_lost(self, error: errors.ShoalError) -> None:
        if not self.finished:
            self._error = error
        self._notify()

    def _notify(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def _changed(self, idle_s: float | None) -> None:
        """Returns when something happened to the stream; the caller looks what."""
        loop = self.connection.loop
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append(waiter)
        if idle_s is None:
            await waiter
            return
        timer = loop.call_later(idle_s, self._expire, waiter, idle_s)
        try:
            await waiter
        finally:
            timer.cancel()

    def _expire(self, waiter: asyncio.Future[None], idle_s: float) -> None:
        if waiter.done():
            return
        self.connection.cancel(self)
        self.on_lost(errors.DeadlineExceeded(f"nothing came from the sandbox for {idle_s:g} s"))


_OVERFLOW = b'{"overflow":true}'
