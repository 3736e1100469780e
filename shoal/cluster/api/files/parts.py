"""A part of a file as a stream out of a sandbox, resumed over a new connection if one breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator

from shoal.client.output import FlowBytes
from shoal.client.retrying_agent import RetryingAgent
from shoal.cluster.api.files.ranges import Part
from shoal.model.errors import FailedPrecondition
from shoal.wire.agent import Agent, Chunks, Entry


class FilePart(FlowBytes):
    """Bytes of the file that `entry` describes. Call `begin` first.

    If the connection broke and the file was replaced or became shorter meanwhile, it ends with `FailedPrecondition`. A
    file of size 0 is read to its end as well: those in `/proc` say 0.
    """

    def __init__(self, agent: RetryingAgent, path: str, entry: Entry, part: Part, user: str) -> None:
        super().__init__(agent, part.begin)
        self._path = path
        self._entry = entry
        self._user = user
        self._end: int | None = part.end if entry.size else None
        self._first = b""
        self._opened = 0
        self._seen = 0  # how often it had been opened when the file was last looked at

    @property
    def length(self) -> int | None:
        """How many bytes come; None if that is not known."""
        if self._end is None:
            return None if self._first else 0
        return self._end - self.offset + len(self._first)

    def _flow(self, agent: Agent) -> Chunks:
        self._opened += 1
        length = -1 if self._end is None else self._end - self.offset
        return agent.read(self._path, self.offset, length, self._user)

    async def begin(self) -> bool:
        """Opens it. False if it is another file than `entry` describes; it is then closed again."""
        try:
            self._first = await self.next()
            same = await self._same()
        except BaseException:
            await self.close()
            raise
        if not same:
            await self.close()
        return same

    async def __aiter__(self) -> AsyncIterator[bytes]:
        data = self._first
        self._first = b""
        while data:
            if self._seen != self._opened and not await self._same():
                raise FailedPrecondition("the file was replaced while it was read; read it again", state="changed")
            yield data
            if self.offset == self._end:
                return
            data = await self.next()
        if self._end is not None and self.offset < self._end:
            raise FailedPrecondition("the file became shorter while it was read; read it again", state="changed")

    async def aclose(self) -> None:
        """The agent stops reading."""
        await self.close()

    async def _same(self) -> bool:
        now = await self._agent.call(lambda agent: agent.stat(self._path, user=self._user))
        self._seen = self._opened
        return (now.size, now.mtime_ns) == (self._entry.size, self._entry.mtime_ns)
