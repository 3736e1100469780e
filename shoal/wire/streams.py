"""A stream whose items are read one by one, and on which data can be sent."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from shoal.model import errors
from shoal.wire.exchanges import Exchange, Multiplexer
from shoal.wire.frames import Kind, encode
from shoal.wire.messages import decode_object

_MAX_BACKLOG = 4 << 20
"""Bytes of events that may wait for their consumer; credit does not cover events."""

_EVENT_COST = 128
"""Bytes added per event, so that a flood of tiny events is bounded too."""

_MERGE_BELOW = 4096
"""Chunks are merged up to this size: a million one-byte chunks must not take 100 MB."""

_OVERFLOW = b'{"overflow":true}'


class Stream(Exchange):
    """A stream whose items are read one by one: `async for` yields `bytes` for DATA and a dict for an EVENT, in order.

    An item counts as consumed when the next one is requested; only then may the other side send more. One consumer.
    `lossy`: if the consumer is too slow, the dropped events become one `{"overflow": true}`; else the stream fails.
    """

    __slots__ = ("_backlog", "_error", "_items", "_lossy", "_reply", "_taken", "_waiters")

    def __init__(self, connection: Multiplexer, *, lossy: bool = False) -> None:
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
        """The next item; None at the end. Raises the stream's error; `DeadlineExceeded` after `idle_s` of silence."""
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
        """The reply's `ok`; raises the stream's error."""
        while not self.finished:
            await self._changed(idle_s)
        if self._error is not None:
            raise errors.error_from_dict(self._error.to_dict())
        assert self._reply is not None
        return self._reply

    # Sending

    async def send(self, data: bytes | bytearray | memoryview, idle_s: float | None = None) -> None:
        """Sends `data` as credit allows. Raises the stream's error; after an early reply, the rest is dropped."""
        view = memoryview(data).cast("B")
        while view:
            if self._error is not None:
                raise errors.error_from_dict(self._error.to_dict())
            if self._reply is not None:
                return
            if not self.may_send(view):
                await self._changed(idle_s)
                continue
            view = self.send_some(view)

    def end(self) -> None:
        """Ends this side of the stream."""
        if not self.finished:
            self.connection.write(encode(Kind.END, self.id))

    def cancel(self) -> None:
        """Closes the stream and drops what waits. May be called again."""
        if self.finished:
            self._items.clear()
            return
        self.owed += self._taken
        self._taken = 0
        self.flush_credit()
        self.connection.cancel(self)
        self._items.clear()
        self.on_lost(errors.FailedPrecondition("the stream was closed by its reader", state="closed"))

    async def changed(self) -> None:
        """Waits for data, credit or the end of the stream; the caller checks which."""
        await self._changed(None)

    # Called by the connection

    def on_data(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.ERRDATA:
            raise errors.Internal("the sandbox sent unexpected standard error")
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
            raise errors.Internal(f"the sandbox sent more than {_MAX_BACKLOG} bytes of events that were not read")
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
        """Waits until the stream changes; the caller checks how."""
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
        self.on_lost(errors.DeadlineExceeded(f"nothing arrived from the sandbox for {idle_s:g} s"))
