"""Long-lived streams: output, standard input, files, archives, changes."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Generator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from shoal.model import errors
from shoal.wire import checks, records
from shoal.wire.connection import Connection
from shoal.wire.exchanges import WINDOW
from shoal.wire.streams import Stream

Item = TypeVar("Item")


class Flow(Generic[Item]):
    """An async iterator that opens its stream when it is awaited, entered, or first read.

    It ends when read to the end, by `aclose()`, or with its `async with` block; else when it is garbage-collected.
    `idle_s`: seconds of silence after which it fails.
    """

    def __init__(
        self, connection: Connection, op: dict[str, Any], *, idle_s: float | None = None, lossy: bool = False
    ) -> None:
        self._connection = connection
        self._op = op
        self._idle_s = idle_s
        self._lossy = lossy
        self._stream: Stream | None = None

    def __await__(self) -> Generator[Any, None, Self]:
        return self._opened().__await__()

    async def __aenter__(self) -> Self:
        return await self._opened()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        stream = self._stream or await self._open()
        while True:
            item = await stream.receive(self._idle_s)
            if item is None:
                self._ended(await stream.reply())
                raise StopAsyncIteration
            taken = self._take(item)
            if taken is not None:
                return taken

    async def aclose(self) -> None:
        """Stops the other side and drops what waits. May be called again."""
        if self._stream is not None:
            self._stream.cancel()

    async def _opened(self) -> Self:
        if self._stream is None:
            await self._open()
        return self

    async def _open(self) -> Stream:
        self._stream = stream = self._connection.stream(self._op, lossy=self._lossy)
        weakref.finalize(self, _cancel_in, self._connection.loop, stream).atexit = False
        return stream

    def _take(self, item: bytes | dict[str, Any]) -> Item | None:
        """The value to return for an item; None for nothing."""
        raise NotImplementedError

    def _ended(self, reply: dict[str, Any]) -> None:
        """The reply arrived, and all items have been read."""


def _cancel_in(loop: asyncio.AbstractEventLoop, stream: Stream) -> None:
    # The garbage collector may run in any thread, and after the loop is closed.
    if not stream.finished:
        try:
            loop.call_soon_threadsafe(stream.cancel)
        except RuntimeError:
            pass  # the loop is closed, and its connections with it


class Chunks(Flow[bytes]):
    """A file or an archive, chunk by chunk."""

    def _take(self, item: bytes | dict[str, Any]) -> bytes:
        if isinstance(item, dict):
            raise errors.Internal("the sandbox sent an unexpected event")
        return item


class OutputStream(Flow[bytes]):
    """A process's output from an offset on, chunk by chunk.

    `offset`: where the next chunk begins; a reader that resumes there misses nothing and gets nothing twice. `gaps`:
    the (from, to) ranges that the sandbox dropped because they were not read in time. `held`: with `tell`, once
    awaited, the (from, end) of the output at that moment; `offset` is then `from`.
    """

    def __init__(self, connection: Connection, op: dict[str, Any], offset: int, reply_s: float) -> None:
        super().__init__(connection, op)
        self.offset = offset
        self.gaps: list[tuple[int, int]] = []
        self.held: tuple[int, int] | None = None
        self._reply_s = reply_s

    async def _open(self) -> Stream:
        stream = await super()._open()
        if "tell" in self._op:
            try:
                self.held = self._span(await stream.receive(self._reply_s))
            except BaseException:
                stream.cancel()
                raise
            self.offset = self.held[0]
        return stream

    def _span(self, item: bytes | dict[str, Any] | None) -> tuple[int, int]:
        span = item.get("held") if isinstance(item, dict) else None
        if type(span) is not list or len(span) != 2 or type(span[0]) is not int or type(span[1]) is not int:
            raise errors.Internal("malformed event from the sandbox: no valid `held`")
        if not self.offset <= span[0] <= span[1] <= checks.MAX_OFFSET:
            raise errors.Internal(f"malformed event from the sandbox: `held` is not ahead of {self.offset}")
        return span[0], span[1]

    def _take(self, item: bytes | dict[str, Any]) -> bytes | None:
        if isinstance(item, bytes):
            self.offset += len(item)
            return item
        gap = item.get("gap")
        if type(gap) is not list or len(gap) != 2 or type(gap[0]) is not int or type(gap[1]) is not int:
            raise errors.Internal("malformed event from the sandbox: not a gap")
        if not self.offset <= gap[0] < gap[1] <= checks.MAX_OFFSET:
            raise errors.Internal(f"malformed event from the sandbox: a gap that is not ahead of {self.offset}")
        self.gaps.append((gap[0], gap[1]))
        self.offset = gap[1]
        return None

    def _ended(self, reply: dict[str, Any]) -> None:
        end = records.whole(reply, "offset", 0, checks.MAX_OFFSET)
        if end != self.offset:
            raise errors.Internal(f"the sandbox lost output: it ends at {end}, but {self.offset} bytes arrived")


class WatchStream(Flow[records.WatchEvent]):
    """Changes below a path. Once awaited, every later change is reported."""

    def __init__(self, connection: Connection, op: dict[str, Any], path: str, reply_s: float) -> None:
        super().__init__(connection, op, lossy=True)
        self._path = path
        self._reply_s = reply_s

    async def _open(self) -> Stream:
        stream = await super()._open()
        try:
            first = await stream.receive(self._reply_s)
        except BaseException:
            stream.cancel()
            raise
        if not isinstance(first, dict) or first.get("watching") is not True:
            stream.cancel()
            raise errors.Internal("malformed event from the sandbox: not `watching`")
        return stream

    def _take(self, item: bytes | dict[str, Any]) -> records.WatchEvent:
        if not isinstance(item, dict):
            raise errors.Internal("the sandbox sent unexpected data")
        return records.watch_event(item, self._path)


class StdinStream:
    """A writer to a process's standard input.

    The first byte written has the requested offset; the other side skips bytes that it already has. `offset`: how much
    the other side has confirmed; bytes before it need not be sent again.
    """

    def __init__(self, stream: Stream, asked: int, offset: int) -> None:
        self._stream = stream
        self._asked = asked
        self._told = offset

    @property
    def offset(self) -> int:
        # Credit is returned for consumed bytes, so it shows how far the other side is.
        taken = self._stream.sent + self._stream.credit - WINDOW
        return max(self._told, self._asked + taken)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Sends `data`; waits while the process does not read. `FailedPrecondition` if its stdin is closed."""
        await self._stream.send(checks.content(data, "data"))
        if self._stream.finished:
            await self._stream.reply()
            raise errors.FailedPrecondition("the process's standard input is closed", state="closed")

    async def close(self) -> None:
        """Ends the input (a terminal gets end-of-transmission) and waits until that has happened."""
        self._stream.end()
        reply = await self._stream.reply()
        self._told = records.whole(reply, "offset", 0, checks.MAX_OFFSET)

    async def drain(self) -> None:
        """Waits until the other side has all that was written. `FailedPrecondition` as in `write`."""
        while not self._stream.finished and self._stream.credit < WINDOW:
            await self._stream.changed()
        await self.write(b"")

    async def finished(self) -> None:
        """Returns when no more input is accepted; the next `write` raises the reason."""
        while not self._stream.finished:
            await self._stream.changed()

    def detach(self) -> None:
        """Closes this writer, and leaves the input open for the next one."""
        self._stream.cancel()
