"""Bytes on their way to a client: streamed responses, and what becomes of clients that do not take them.

Nothing is held whole: a chunk is asked for once the one before was taken. A client that goes away ends the source at
once. A client that stays and does not read holds up to a window of bytes in this process (1 MiB for a stream of the
agent's; a long answer of `exec` is held whole) until the gateway cuts it off, after two minutes. Where many do so at
once, those that wait longest are cut off sooner; they may come back and go on by offset or range.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from shoal.model.errors import DeadlineExceeded, QuotaExceeded

WINDOW = 1 << 20
"""Bytes that wait in this process for a client that does not read."""

MAX_STALLED = 256
"""Windows that clients of this replica may leave waiting for as long as they like."""

PATIENCE_S = 5.0
"""Seconds after which a client that has not taken its piece counts as stalled, where there are too many."""

OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class _Wait:
    """Since when a client has been waited for, and how many windows it holds meanwhile."""

    since: float
    windows: int


class SlowClientGuard:
    """Bounds what clients that do not read hold in memory: `with` its `waiting` around each send."""

    def __init__(self, limit: int = MAX_STALLED, patience_s: float = PATIENCE_S) -> None:
        self._limit = limit
        self._patience_s = patience_s
        self._waiting: OrderedDict[asyncio.Task[Any], _Wait] = OrderedDict()
        self._held = 0  # windows, by all that wait
        self._cut: set[asyncio.Task[Any]] = set()

    @contextmanager
    def waiting(self, size: int = WINDOW) -> Iterator[None]:
        """Around a send by the current task, which holds `size` bytes meanwhile.

        `QuotaExceeded` where it was cut off.
        """
        task = asyncio.current_task()
        assert task is not None
        wait = _Wait(time.monotonic(), max(1, size // WINDOW))
        self._waiting[task] = wait
        self._held += wait.windows
        self._cut_off(wait.since)
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._cut:
                raise
            task.uncancel()
            raise QuotaExceeded("the client does not read, as too many do not: come back for the rest") from None
        finally:
            self._leave(task)
            self._cut.discard(task)

    def _cut_off(self, now: float) -> None:
        while self._held > self._limit:
            oldest, wait = next(iter(self._waiting.items()))
            if now - wait.since <= self._patience_s:
                return
            self._leave(oldest)
            self._cut.add(oldest)
            oldest.cancel()

    def _leave(self, task: asyncio.Task[Any]) -> None:
        wait = self._waiting.pop(task, None)
        if wait is not None:
            self._held -= wait.windows


slow_clients = SlowClientGuard()


class StreamingBody(Response):
    """A response out of `chunks`, whose `aclose` runs in the end, whatever happens.

    `length`: bytes that will come, where that is known. Fewer, or an error on the way, breaks the connection off: the
    client must not take what it has for the whole. `stall_s`: seconds that the client may take nothing, None for any
    time. `holds`: bytes that it keeps in memory until it is through. `check`: runs beside it, and breaks it off by
    raising.
    """

    def __init__(
        self,
        chunks: AsyncIterable[bytes],
        *,
        status_code: int = 200,
        headers: Mapping[str, str],
        length: int | None = None,
        media_type: str = OCTETS,
        stall_s: float | None = None,
        holds: int = WINDOW,
        check: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self.status_code = status_code
        self.background = None
        self.media_type = media_type
        self._chunks = chunks
        self._stall_s = stall_s
        self._holds = holds
        self._check = check
        more = {} if length is None else {"content-length": str(length)}
        self.init_headers({"x-content-type-options": "nosniff", **headers, **more})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = [self._pump(send), gone(receive)]
        if self._check is not None:
            work.append(self._check())
        try:
            await first_to_end(*work)
        finally:
            close = getattr(self._chunks, "aclose", None)
            if close is not None:
                await close()

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for chunk in self._chunks:
                async with asyncio.timeout(self._stall_s):
                    with slow_clients.waiting(self._holds):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError:
            raise DeadlineExceeded(f"the client took nothing for {self._stall_s:g} s") from None
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def first_to_end(*work: Coroutine[Any, Any, None]) -> None:
    """Runs all until one of them ends, ends the others, and raises what the first raised."""
    await _together(work, asyncio.FIRST_COMPLETED)


async def all_to_end(*work: Coroutine[Any, Any, None]) -> None:
    """Runs all to their ends. Where one raises, ends the others, and raises that."""
    await _together(work, asyncio.FIRST_EXCEPTION)


async def _together(work: Sequence[Coroutine[Any, Any, None]], until: str) -> None:
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=until)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        if not task.cancelled():
            task.result()


async def gone(receive: Receive) -> None:
    """Returns when the client has gone away."""
    message: Message = {}
    while message.get("type") != "http.disconnect":
        message = await receive()
