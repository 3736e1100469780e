"""Writing to a process's standard input, over as many connections as it takes."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING

from shoal.client.dual_method import dual_method
from shoal.client.retrying_agent import Patience, RetryingAgent
from shoal.model.errors import FailedPrecondition, InvalidRequest, Unavailable

if TYPE_CHECKING:
    from shoal.wire.agent import StdinStream

_PIECE = 256 << 10


class Input:
    """A process's standard input. `write` waits while the process does not read (beyond 1 MiB); `close` tells it the end.

    What the process's side has not yet told to have is kept, and sent again where the connection broke: nothing is lost,
    nothing comes twice.
    """

    def __init__(self, agent: RetryingAgent, process_id: str, offset: int | None) -> None:
        # `offset`: how much was written by whoever wrote before; None: ask.
        self._agent = agent
        self._process_id = process_id
        self._offset = offset  # of the first byte in `_unconfirmed`
        self._unconfirmed = bytearray()
        self._closed = False
        self._stream: StdinStream | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finalizer: weakref.finalize[..., Input] | None = None
        self._busy = False

    @dual_method
    async def write(self, data: str | bytes | bytearray | memoryview) -> None:
        """Writes all of `data` (text as UTF-8). `FailedPrecondition` where the process has closed its input, or ended."""
        if isinstance(data, str):
            data = data.encode("utf-8", "surrogateescape")
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidRequest(f"data: {type(data).__name__} is neither text nor bytes", field="data")
        if self._closed:
            raise FailedPrecondition("this input is closed", state="closed")
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _PIECE):
            await self._move(bytes(view[start : start + _PIECE]))

    @dual_method
    async def close(self) -> None:
        """Ends the input: the process reads to its end (on a terminal, Ctrl-D). Again is harmless."""
        if not self._closed:
            await self._move(None)
            self._closed = True

    @dual_method
    async def watch(self) -> None:
        """Returns at once where nothing was written. Otherwise it mends the connection as often as it breaks, so that what was written
        arrives, and raises `FailedPrecondition` when no more is taken. Cancel it before the next write."""
        while self._stream is not None:
            await self._stream.finished()
            await self._move(b"")

    def leave(self) -> None:
        """Lets go of what writing holds, in the loop that wrote. The input stays open for who comes next."""
        self._let_go()

    async def _move(self, piece: bytes | None) -> None:
        """Sends one piece, or the end of the input."""
        if self._busy:
            raise FailedPrecondition("somebody else is writing to this input: one writer at a time", state="writing")
        self._busy = True
        patience = Patience()
        fresh = piece
        try:
            while True:
                try:
                    stream = await self._attached()
                    patience.working()
                    if fresh is not None:
                        # From here on it is one of those that are sent again.
                        self._unconfirmed += fresh
                        sending, fresh = fresh, None
                        await stream.write(sending)
                    if piece is None:
                        await stream.close()
                        self._stream = None
                        self._release()
                    self._confirm(stream.offset)
                    return
                except Unavailable as error:
                    self._let_go()
                    await patience.after(error)
                except FailedPrecondition:
                    self._let_go()
                    if piece is None:
                        return  # the other end closed it first, or our first attempt did
                    raise
                except asyncio.CancelledError:
                    self._let_go()  # how much of the piece went out is not known: the next attempt finds out
                    raise
        finally:
            self._busy = False

    async def _attached(self) -> StdinStream:
        """The open stream, all that is unconfirmed sent again where it is a new one."""
        loop = asyncio.get_running_loop()
        if self._stream is not None and self._loop is loop:
            return self._stream
        self._let_go()
        agent = await self._agent.connect()
        if self._offset is None:
            asking = await agent.stdin(self._process_id, 0)
            self._offset = asking.offset
            asking.detach()
        self._stream = stream = await agent.stdin(self._process_id, self._offset)
        self._loop = loop
        self._finalizer = weakref.finalize(self, _detach_in, loop, stream)
        self._finalizer.atexit = False
        if self._unconfirmed:
            await stream.write(bytes(self._unconfirmed))
        return stream

    def _confirm(self, offset: int) -> None:
        """Forgets what the other side has."""
        assert self._offset is not None
        confirmed = min(max(0, offset - self._offset), len(self._unconfirmed))
        del self._unconfirmed[:confirmed]
        self._offset += confirmed

    def _let_go(self) -> None:
        self._stream = None
        if self._finalizer is not None:
            self._finalizer()
        self._release()

    def _release(self) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None


def _detach_in(loop: asyncio.AbstractEventLoop, stream: StdinStream) -> None:
    """Leaves the input open for who comes next, in the loop that the stream belongs to."""
    if loop.is_closed():
        return
    try:
        loop.call_soon_threadsafe(stream.detach)
    except RuntimeError:  # it was closed just now
        pass
