"""Writing to a process's standard input, reconnecting as often as needed."""

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
    """A process's standard input. `write` waits while more than 1 MiB is unread; `close` ends the input.

    Data that the other side has not confirmed is kept and sent again after a broken connection: nothing is lost, and
    nothing arrives twice.
    """

    def __init__(self, agent: RetryingAgent, process_id: str, offset: int | None) -> None:
        # `offset`: how many bytes earlier writers wrote; None: ask the agent.
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
        """Writes all of `data` (text as UTF-8). `FailedPrecondition` if the process has closed its input or ended."""
        if isinstance(data, str):
            data = data.encode("utf-8", "surrogateescape")
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InvalidRequest(f"data: {type(data).__name__} is neither str nor bytes", field="data")
        if self._closed:
            raise FailedPrecondition("this input is closed", state="closed")
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _PIECE):
            await self._move(bytes(view[start : start + _PIECE]))

    @dual_method
    async def close(self) -> None:
        """Ends the input, so that the process reads EOF (on a terminal, Ctrl-D). May be called again."""
        if not self._closed:
            await self._move(None)
            self._closed = True

    @dual_method
    async def watch(self) -> None:
        """Reconnects as often as needed until all that was written has arrived; returns at once if nothing was written.

        Raises `FailedPrecondition` once the process takes no more input. Cancel it before the next write.
        """
        while self._stream is not None:
            await self._stream.finished()
            await self._move(b"")

    def leave(self) -> None:
        """Closes the stream, in the loop that wrote. The input stays open for the next writer."""
        self._let_go()

    async def _move(self, piece: bytes | None) -> None:
        """Sends one piece, or the end of the input."""
        if self._busy:
            raise FailedPrecondition("another call is writing to this input; use one writer at a time", state="writing")
        self._busy = True
        patience = Patience()
        fresh = piece
        try:
            while True:
                try:
                    stream = await self._attached()
                    patience.working()
                    if fresh is not None:
                        # From here on it is sent again if the connection breaks.
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
                    self._let_go()  # the next attempt finds out how much of the piece was sent
                    raise
        finally:
            self._busy = False

    async def _attached(self) -> StdinStream:
        """The open stream; a new one first gets all unconfirmed data again."""
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
        """Drops what the other side has confirmed."""
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
    """Closes the stream in the loop that it belongs to, and leaves the input open."""
    if loop.is_closed():
        return
    try:
        loop.call_soon_threadsafe(stream.detach)
    except RuntimeError:  # it was closed just now
        pass
