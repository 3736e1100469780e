"""Reading a process's output by lines or chunks, reconnecting as often as needed.

ByteSource    bytes in order, until the end
ProcessBytes  a process's stdout or stderr by offset, so a broken connection is only a pause
Output        the user's object: iteration, `read`, `readline`
"""

from __future__ import annotations

import asyncio
import codecs
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, AnyStr, Generic, cast

from shoal.client.dual_method import block_on, dual_method
from shoal.client.retrying_agent import Patience, RetryingAgent
from shoal.model import verbs
from shoal.model.errors import FailedPrecondition, PermissionDenied, SandboxEnded, ShoalError, Unavailable
from shoal.model.ids import MAIN_PROCESS
from shoal.model.states import State
from shoal.model.validate import MAX_TIMEOUT, check_number

if TYPE_CHECKING:
    from shoal.model.info import LogChunk
    from shoal.wire.agent import Agent, OutputStream
    from shoal.wire.flows import Flow

MAX_LINE = 1 << 20
"""Characters (or bytes) after which a line is returned in pieces: a hostile process may never end its line."""

_LOOK_S = 0.5
_OPEN_S = 5.0
"""Seconds that a call with a shorter timeout may take to reach the sandbox, and to get what is on its way."""


class ByteSource(ABC):
    """Bytes in order."""

    @abstractmethod
    async def next(self) -> bytes:
        """The next bytes; empty at the end, and on every later call. Cancelling it loses nothing."""

    @abstractmethod
    async def next_within(self, timeout: float) -> bytes | None:
        """Like `next`; None if nothing came within `timeout` seconds. What was there before comes in any case."""

    @abstractmethod
    async def close(self) -> None:
        """Closes the stream. A later `next` opens it again."""


class FlowBytes(ByteSource):
    """A byte stream out of a sandbox, from `offset` on, over as many connections as needed.

    It belongs to no event loop: it connects in the loop that reads, and continues at its offset in another.
    """

    def __init__(self, agent: RetryingAgent, offset: int = 0) -> None:
        self._agent = agent
        self.offset = offset
        self._ended = False
        self._held: _Held | None = None

    @abstractmethod
    def _flow(self, agent: Agent) -> Flow[bytes]:
        """Opens the flow at `offset`."""

    def _reached(self, flow: Flow[bytes], taken: int) -> int:
        """The offset after `taken` more bytes; 0 at the end."""
        return self.offset + taken

    async def _is_all(self, flow: Flow[bytes]) -> bool:
        """Whether the reader needs no more of the flow."""
        return False

    async def _after_sandbox(self, over: SandboxEnded | FailedPrecondition) -> bytes:
        """The next bytes if the sandbox ended or stopped before the flow did. Raises `over` where there are none."""
        raise over

    async def next(self) -> bytes:
        patience = Patience()
        while not self._ended:
            try:
                flow = await self._attached()
                patience.working()
                data = b"" if await self._is_all(flow) else await anext(flow, b"")
            except (SandboxEnded, FailedPrecondition) as over:
                self._let_go()
                return await self._after_sandbox(over)
            except Unavailable as error:
                self._let_go()
                await patience.after(error)
            else:
                self.offset = self._reached(flow, len(data))
                if data:
                    return data
                self._ended = True
        self._let_go()
        return b""

    async def next_within(self, timeout: float) -> bytes | None:
        clock = asyncio.get_running_loop().time
        end = clock() + timeout
        try:
            async with asyncio.timeout(max(timeout, _OPEN_S)) as limit:
                if not await self._on_the_way():
                    limit.reschedule(max(end, clock()))  # now: what has arrived is still returned
                return await self.next()
        except TimeoutError:
            return None

    async def _on_the_way(self) -> bool:
        """Opens the flow, and tells whether bytes, its end or an error must come soon."""
        return True

    async def close(self) -> None:
        self._let_go()
        await asyncio.sleep(0)  # lets the close run if it is in this loop

    async def _attached(self) -> Flow[bytes]:
        loop = asyncio.get_running_loop()
        if self._held is not None and self._held.loop is loop:
            return self._held.flow
        self._let_go()
        # Opened before it is held: one whose opening was cancelled is closed.
        flow = await self._flow(await self._agent.connect())
        self._held = _Held(self, loop, flow)
        return flow

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.finalizer()


class ProcessBytes(FlowBytes):
    """A process's stdout (`fd` 1) or stderr (2). Its own command's kept output can be read after the sandbox's end.

    `peek`: the process does not wait for this reader, which may therefore miss some output. With a token of scope
    `read`, the output of the sandbox's own command is polled from the API instead. `follow` False: stops at what there
    is when reading starts. `dropped`: bytes that were gone before they were read.
    """

    def __init__(
        self, agent: RetryingAgent, process_id: str, fd: int, *, peek: bool = False, follow: bool = True
    ) -> None:
        super().__init__(agent)
        self._process_id = process_id
        self._fd = fd
        self._peek = peek
        self._follow = follow
        self._until: int | None = None
        self._may_only_look = False
        self.dropped = 0

    async def next(self) -> bytes:
        before = self.offset
        data = await (self._looked() if self._may_only_look else self._read())
        self.dropped += self.offset - before - len(data)
        return data

    async def _read(self) -> bytes:
        try:
            return await super().next()
        except PermissionDenied:
            if not self._peek or self._process_id != MAIN_PROCESS:
                raise
            self._may_only_look = True
            return await self._looked()

    async def _looked(self) -> bytes:
        last = not self._follow
        while not self._ended:
            chunk = await self._kept()
            self._ended = last
            if chunk.data:
                return chunk.data
            if not last:  # after the sandbox's end, no more output comes
                last = (await self._agent.transport.wait(self._agent.sandbox_id, _LOOK_S)).ended
        return b""

    def _flow(self, agent: Agent) -> Flow[bytes]:
        return agent.output(self._process_id, self._fd, self.offset, tell=True, peek=self._peek)

    async def _is_all(self, flow: Flow[bytes]) -> bool:
        if self._follow:
            return False
        stream = cast("OutputStream", flow)
        if self._until is None:
            self._until = _end_of(stream)
        return stream.offset >= self._until

    async def _on_the_way(self) -> bool:
        if self._may_only_look or not self._follow:
            return True
        try:
            return self.offset < _end_of(cast("OutputStream", await self._attached()))
        except ShoalError:
            return True  # `next` deals with it

    def _reached(self, flow: Flow[bytes], taken: int) -> int:
        return cast("OutputStream", flow).offset  # it knows of gaps

    async def _after_sandbox(self, over: SandboxEnded | FailedPrecondition) -> bytes:
        # The output of one that is suspended is in its memory: its node has kept none.
        kept = isinstance(over, SandboxEnded) or (over.state == State.STOPPED and not over.fields.get("suspended"))
        if self._process_id != MAIN_PROCESS or not kept:
            raise over
        patience = Patience()
        while True:
            try:
                chunk = await self._kept()
            except FailedPrecondition as error:  # the sandbox is just ending
                await patience.after(Unavailable(error.message))
                continue
            self._ended = chunk.end
            if chunk.data or chunk.end:
                return chunk.data
            await patience.after(Unavailable("the rest of the output is not there yet"))

    async def _kept(self) -> LogChunk:
        """The kept output from `offset` on; moves `offset` behind it."""
        chunk = await self._agent.transport.ask(verbs.logs, self._agent.sandbox_id, self._fd, self.offset)
        self.offset = max(self.offset, chunk.offset + len(chunk.data))
        return chunk


def _end_of(stream: OutputStream) -> int:
    """Where the output ended when the stream was opened."""
    assert stream.held is not None  # requested by `tell`
    return stream.held[1]


class _Held:
    """An open flow and its event loop. It is closed there when its owner closes it or is garbage-collected."""

    __slots__ = ("finalizer", "flow", "loop")

    def __init__(self, owner: FlowBytes, loop: asyncio.AbstractEventLoop, flow: Flow[bytes]) -> None:
        self.loop = loop
        self.flow = flow
        self.finalizer = weakref.finalize(owner, close_in, loop, flow.aclose)
        self.finalizer.atexit = False


class Output(Generic[AnyStr]):
    """A process's output as it comes. Text is decoded as UTF-8; invalid bytes become U+FFFD.

    Iterating (`for` or `async for`) yields lines with their `\\n` in text mode, else chunks of bytes as they came. One
    reader at a time. Late reading loses nothing: a process waits once 1 MiB of its output is unread.
    """

    _decode: Callable[[bytes, bool], AnyStr]
    _newline: AnyStr
    _rest: AnyStr

    def __init__(
        self, source: ByteSource, decode: Callable[[bytes, bool], AnyStr], newline: AnyStr, *, by_line: bool
    ) -> None:
        self._source = source
        self._decode = decode
        self._newline = newline
        self._by_line = by_line
        self._rest: AnyStr = newline[:0]  # decoded, not yet returned
        self._at_end = False
        self._busy = False

    @dual_method
    async def read(self, size: int = -1) -> AnyStr:
        """The next `size` characters (bytes in bytes mode), fewer only at the end; -1: everything to the end."""
        pieces: list[AnyStr] = []
        missing = size
        while missing != 0 and (self._rest or await self._fill()):
            piece = self._rest if missing < 0 else self._rest[:missing]
            self._rest = self._rest[len(piece) :]
            pieces.append(piece)
            if missing > 0:
                missing -= len(piece)
        return self._newline[:0].join(pieces)

    @dual_method
    async def readline(self) -> AnyStr:
        """The next line with its end; empty at the end of the output. A line of more than 1 MiB comes in pieces."""
        searched = 0
        while True:
            line = self._line(searched)
            if line is not None:
                return line
            searched = len(self._rest)
            if not await self._fill():
                line, self._rest = self._rest, self._newline[:0]
                return line

    @dual_method
    async def read_available(self, timeout: float | None = None) -> AnyStr:
        """What there is; where there is nothing, what comes next: for programs that ask and wait for an answer.

        Waits at most `timeout` seconds (None: without limit; 0: not at all) for the first of it. Empty if nothing came
        in that time, and at the end of the output: `at_end` tells which. In text mode, a character of which only a part
        has arrived comes whole, later.
        """
        if timeout is not None:
            check_number("timeout", timeout, -1, MAX_TIMEOUT, "seconds")
        if not self._rest:
            await self._fill(timeout)
        item, self._rest = self._rest, self._newline[:0]
        return item

    @property
    def at_end(self) -> bool:
        """Whether the process has closed this output, and all of it has been read."""
        return self._at_end and not self._rest

    @dual_method
    async def close(self) -> None:
        """Disconnects; a later read continues where this one stopped. The process waits once 1 MiB is unread."""
        await self._source.close()

    def __iter__(self) -> Output[AnyStr]:
        return self

    def __next__(self) -> AnyStr:
        item = (self._line(0) if self._by_line else None) or block_on(self._next())
        if not item:
            raise StopIteration
        return item

    def __aiter__(self) -> Output[AnyStr]:
        return self

    async def __anext__(self) -> AnyStr:
        item = await self._next()
        if not item:
            raise StopAsyncIteration
        return item

    async def _next(self) -> AnyStr:
        if self._by_line:
            return await self.readline.aio()
        if not self._rest:
            await self._fill()
        item, self._rest = self._rest, self._newline[:0]
        return item

    def _line(self, searched: int) -> AnyStr | None:
        """The next line if it has arrived; the first `searched` characters are known to hold no line end."""
        found = self._rest.find(self._newline, searched)
        length = found + 1 if found >= 0 else len(self._rest) if len(self._rest) >= MAX_LINE else 0
        if not length:
            return None
        line, self._rest = self._rest[:length], self._rest[length:]
        return line

    async def _fill(self, timeout: float | None = None) -> bool:
        """Reads more; False at the end, or if nothing came within `timeout` seconds."""
        if self._at_end:
            return False
        if self._busy:
            raise FailedPrecondition("another call is reading this output; use one reader at a time", state="reading")
        self._busy = True
        try:
            end = None if timeout is None else time.monotonic() + timeout
            while True:
                if end is None:
                    data = await self._source.next()
                else:
                    piece = await self._source.next_within(max(0, end - time.monotonic()))
                    if piece is None:
                        return False
                    data = piece
                self._at_end = not data
                more = self._decode(data, self._at_end)
                if more:
                    self._rest += more
                    return True
                if self._at_end:
                    return False
        finally:
            self._busy = False


def text_output(source: ByteSource) -> Output[str]:
    """Lines of text."""
    return Output(source, codecs.getincrementaldecoder("utf-8")("replace").decode, "\n", by_line=True)


def bytes_output(source: ByteSource, *, by_line: bool = False) -> Output[bytes]:
    """Chunks of bytes as they come, or lines."""
    return Output(source, lambda data, final: data, b"\n", by_line=by_line)


def close_in(loop: asyncio.AbstractEventLoop, aclose: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs `aclose` in `loop`, which may belong to another thread or be closed."""
    if loop.is_closed():
        return
    try:
        loop.call_soon_threadsafe(_spawn, loop, aclose)
    except RuntimeError:  # it was closed just now
        pass


def _spawn(loop: asyncio.AbstractEventLoop, aclose: Callable[[], Coroutine[Any, Any, None]]) -> None:
    task = loop.create_task(aclose())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


_closing: set[asyncio.Task[None]] = set()
"""Keeps the tasks alive: a loop holds them only weakly."""
