"""A file of a sandbox as a file object."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, AnyStr, Generic, Self

from shoal.client.dual_method import dual_method
from shoal.client.output import FlowBytes, Output, bytes_output, text_output
from shoal.client.retrying_agent import RetryingAgent
from shoal.model.errors import FailedPrecondition, InvalidRequest, QuotaExceeded

if TYPE_CHECKING:
    from shoal.wire.agent import Agent, Entry
    from shoal.wire.flows import Flow

_IN_MEMORY = 8 << 20
"""Bytes of unwritten data kept in memory; more goes to a temporary file."""

_PIECE = 1 << 20

_MOST_REST = 1 << 30
"""Characters or bytes that a read of all the rest returns at most, because a sandbox's file may be of any size."""


class FileBytes(FlowBytes):
    """A file's bytes. After a broken connection it is opened again at the offset, if it is unchanged since `entry`."""

    def __init__(self, agent: RetryingAgent, path: str | os.PathLike[str], entry: Entry, user: str = "") -> None:
        super().__init__(agent)
        self._path = path
        self._entry = entry
        self._user = user
        self._doubtful = False

    async def next(self) -> bytes:
        data = await super().next()
        if self._doubtful:
            try:
                await self._check_same()  # after the read, so it checks the file that was read
            except BaseException:
                self.offset -= len(data)  # the data is not returned
                self._let_go()
                raise
            self._doubtful = False
        return data

    def _flow(self, agent: Agent) -> Flow[bytes]:
        self._doubtful = self.offset > 0
        return agent.read(self._path, self.offset, user=self._user)

    async def _check_same(self) -> None:
        seen, now = self._entry, await self._agent.call(lambda agent: agent.stat(self._path, user=self._user))
        if (now.size, now.mtime_ns) != (seen.size, seen.mtime_ns):
            raise FailedPrecondition(
                f"{os.fspath(self._path)!r} was changed while it was read; read it again",
                state="changed",
            )


class SandboxFile(Generic[AnyStr]):
    """The file object that `FileSystem.open` returns. Reading is sequential; iterating yields lines with their `\\n`.

    Written data stays here until `close`, which writes the file at once. An error in the `with` block discards it.
    """

    _output: Output[AnyStr] | None
    _empty: AnyStr

    def __init__(
        self,
        agent: RetryingAgent,
        path: str | os.PathLike[str],
        mode: str,
        output: Output[AnyStr] | None,
        empty: AnyStr,
        user: str,
    ) -> None:
        self._agent = agent
        self._path = path
        self._output = output
        self._kept: IO[bytes] | None = None
        if output is None:
            self._kept = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        self._size = 0
        self._user = user
        self._empty = empty
        self.mode = mode
        self.closed = False

    @classmethod
    def reading(
        cls, agent: RetryingAgent, path: str | os.PathLike[str], mode: str, entry: Entry, user: str
    ) -> SandboxFile[Any]:
        """A file object for reading; `entry` is the file's. The mode is already checked."""
        source = FileBytes(agent, path, entry, user)
        if mode == "rb":
            return SandboxFile(agent, path, mode, bytes_output(source, by_line=True), b"", user)
        return SandboxFile(agent, path, mode, text_output(source), "", user)

    @classmethod
    def writing(cls, agent: RetryingAgent, path: str | os.PathLike[str], mode: str, user: str) -> SandboxFile[Any]:
        """A file object for writing. The mode is already checked."""
        return SandboxFile(agent, path, mode, None, b"" if "b" in mode else "", user)

    @dual_method
    async def read(self, size: int = -1) -> AnyStr:
        """The next `size` characters (bytes in a `b` mode), fewer only at the end; -1: all the rest.

        Raises `QuotaExceeded` if that is more than 1 Gi of them: read it in pieces.
        """
        data = await self._readable().read.aio(_MOST_REST + 1 if size < 0 else size)
        if size < 0 and len(data) > _MOST_REST:
            raise QuotaExceeded(f"size: {self._path} has more than {_MOST_REST} left; read it in pieces", field="size")
        return data

    @dual_method
    async def readline(self) -> AnyStr:
        """The next line with its end; empty at the end of the file. A line of more than 1 MiB comes in pieces."""
        return await self._readable().readline.aio()

    @dual_method
    async def write(self, data: AnyStr) -> int:
        """Adds `data` to what `close` will write; returns its length."""
        if self.closed or self._kept is None:
            raise self._wrong_state("reading")
        if not isinstance(data, type(self._empty)):
            raise InvalidRequest(f"data: {type(data).__name__} does not fit mode {self.mode!r}", field="data")
        content = _as_bytes(data)
        self._size += len(content)
        if self._size > _IN_MEMORY:
            await asyncio.to_thread(self._kept.write, content)
        else:
            self._kept.write(content)
        return len(data)

    @dual_method
    async def close(self) -> None:
        """Writes the pending data and closes. May be called again."""
        if self.closed:
            return
        self.closed = True
        if self._output is not None:
            await self._output.close.aio()
        elif self._kept is not None:
            with self._kept:
                await self._store()

    async def _store(self) -> None:
        def write(agent: Agent) -> Any:
            return agent.write(self._path, self._content(), append=self.mode[0] == "a", parents=True, user=self._user)

        if self.mode[0] == "a":
            await self._agent.once(write, f"append to {self._path}")
        else:
            await self._agent.call(write)

    async def _content(self) -> AsyncIterator[bytes]:
        assert self._kept is not None
        self._kept.seek(0)
        while piece := await asyncio.to_thread(self._kept.read, _PIECE):
            yield piece

    def _readable(self) -> Output[AnyStr]:
        if self.closed or self._output is None:
            raise self._wrong_state("writing")
        return self._output

    def _wrong_state(self, open_for: str) -> FailedPrecondition:
        if self.closed:
            return FailedPrecondition(f"{self._path} is closed", state="closed")
        return FailedPrecondition(f"{self._path} is open for {open_for}", state=open_for)

    @dual_method
    async def _leave(self, failed: bool) -> None:
        if failed and self._kept is not None:
            self.closed = True
            self._kept.close()
        await self.close.aio()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> AnyStr:
        return next(self._readable())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnyStr:
        return await anext(self._readable())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave(error is not None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._leave.aio(error is not None)


def _as_bytes(data: str | bytes) -> bytes:
    return data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
