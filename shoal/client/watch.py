"""Watching a path in a sandbox for changes."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from shoal.client.contexts import Series
from shoal.client.dual_method import dual_method
from shoal.client.output import close_in
from shoal.client.retrying_agent import Patience, RetryingAgent
from shoal.model.errors import Unavailable

if TYPE_CHECKING:
    from shoal.wire.agent import WatchEvent, WatchStream


class Watch(Series["WatchEvent"]):
    """An endless stream of changes: iterate over it, and `close` it when done.

    An event of kind `overflow` means that changes were missed, because the connection broke or too many came at once:
    look at the directory yourself.
    """

    def __init__(self, agent: RetryingAgent, path: str | os.PathLike[str], recursive: bool, user: str = "") -> None:
        self._agent = agent
        self._path = path
        self._recursive = recursive
        self._user = user
        self._stream: WatchStream | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._missed = False
        self._closed = False

    @dual_method
    async def start(self) -> None:
        """Starts watching, in the running loop; no change after its return is missed."""
        self._loop = asyncio.get_running_loop()
        self._stream = await self._agent.call(
            lambda agent: _opened(agent.watch(self._path, self._recursive, self._user))
        )

    @dual_method
    async def next(self) -> WatchEvent | None:
        """The next change; None once closed."""
        from shoal.wire.agent import WatchEvent

        patience = Patience()
        while not self._closed:
            try:
                if self._stream is None or self._loop is not asyncio.get_running_loop():
                    self._let_go()
                    await self.start.aio()
                    self._missed = True
                if self._missed:
                    self._missed = False
                    return WatchEvent("overflow", os.fspath(self._path), None)
                assert self._stream is not None
                patience.working()
                return await anext(self._stream)
            except Unavailable as error:
                self._stream = None
                await patience.after(error)
        return None

    @dual_method
    async def close(self) -> None:
        """Stops watching. May be called again."""
        self._closed = True
        self._let_go()

    _leave = close

    def _let_go(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None and self._loop is not None:
            close_in(self._loop, stream.aclose)


async def _opened(stream: WatchStream) -> WatchStream:
    return await stream
