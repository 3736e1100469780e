"""An agent in memory: a dict of files, and the programs `true`, `false`, `echo`, `cat` and `sleep`.

It belongs to no event loop: a process's state is a matter of the clock and of its input, and who waits looks again and
again.
"""

from __future__ import annotations

import asyncio
import builtins
import shlex
import time
from collections.abc import AsyncIterable, Callable
from pathlib import PurePosixPath
from typing import Any, Self

from shoal.model.errors import (
    AlreadyExists,
    CommandNotFound,
    FailedPrecondition,
    InvalidRequest,
    IsADirectory,
    NotADirectory,
    PathNotFound,
    ProcessNotFound,
)
from shoal.wire import checks
from shoal.wire.agent import Agent, Chunks, Entry, Exit, OutputStream, RunResult, Start, StdinStream, Terminal
from shoal.wire.budget import Share
from shoal.wire.files import Content
from tests.fakes.archive import packed, unpacked

_TICK_S = 0.002
Note = Callable[[str, Any], None]


class FakeProcess:
    """A process. `streams[1]` and `streams[2]` are its output so far."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.pid = 100
        self.streams = {1: bytearray(), 2: bytearray()}
        self.input = bytearray()
        self.input_closed = False
        self.timed_out = False
        self._began = time.monotonic()
        self._exit: int | None = None
        name, *arguments = _words(start.argv)
        self._sleep_s = float(arguments[0]) if name == "sleep" else 0.0
        self._program = name
        if name == "echo":
            self.streams[1] += " ".join(arguments).encode() + b"\n"
        elif name not in ("true", "false", "cat", "sleep"):
            raise CommandNotFound(f"argv: there is no program {name!r} in the sandbox", field="argv", exit_code=127)

    @property
    def exit(self) -> int | None:
        if self._exit is None:
            elapsed = time.monotonic() - self._began
            if self.start.timeout_s and elapsed > self.start.timeout_s:
                self._exit, self.timed_out = -9, True
            elif self.input_closed if self._program == "cat" else elapsed >= self._sleep_s:
                self._exit = int(self._program == "false")
        return self._exit

    def feed(self, data: bytes) -> None:
        if self.input_closed or self.exit is not None:
            raise FailedPrecondition("the process's standard input is closed", state="closed")
        self.input += data
        if self._program == "cat":
            self.streams[1] += data

    def kill(self, signal: int) -> None:
        if self.exit is None:
            self._exit = -signal

    async def ended(self) -> Exit:
        while (code := self.exit) is None:  # noqa: ASYNC110  # callers come from many loops
            await asyncio.sleep(_TICK_S)
        return Exit(code, self.timed_out, time.monotonic() - self._began)


class FakeAgent(Agent):
    """What an agent's client offers, without an agent. `note` hears of every call first, and may raise."""

    def __init__(self, note: Note) -> None:
        self.note = note
        self.processes: dict[str, FakeProcess] = {}
        self._is_over = False
        self.files = _Files()
        self.directories = {"/", "/tmp"}

    def start(self, start: Start) -> FakeProcess:
        """Starts a process; the same start again gives the same process."""
        start.request("exec")
        if start.id not in self.processes:
            self.processes[start.id] = FakeProcess(start)
        if self._is_over:
            self.processes[start.id].kill(9)
        return self.processes[start.id]

    def end(self) -> None:
        """Its sandbox has ended: it kills all, and what comes too late."""
        self._is_over = True
        for process in list(self.processes.values()):
            process.kill(9)

    def begin_anew(self) -> None:
        """Its sandbox starts again."""
        self._is_over = False
        self.processes.clear()

    # Processes

    async def run(
        self,
        start: Start,
        *,
        input: bytes | None = None,
        max_output: int = 8 << 20,
        merge_stderr: bool = False,
        share: Share | None = None,  # of memory: here there is no more of it for being gathered
    ) -> RunResult:
        checks.flag(merge_stderr, "merge_stderr")
        if input is not None:
            checks.content(input, "input")
        process = self.start(start)
        self.note("run", start)
        if not process.input_closed and process.exit is None:
            process.feed(input or b"")
        process.input_closed = True
        end = await process.ended()
        out, err = (bytes(process.streams[fd]) for fd in (1, 2))
        cut = len(out) > max_output or len(err) > max_output
        return RunResult(start.id, end.exit, out[:max_output], err[:max_output], end.timed_out, cut, end.duration_s)

    async def exec(
        self,
        start: Start,
        *,
        pty: Terminal | None = None,
        merge_stderr: bool = False,
        stdin: bool = True,
        tail: bool = False,
    ) -> int:
        checks.flag(merge_stderr, "merge_stderr")
        if pty is not None:
            pty.request()
        process = self.start(start)
        self.note("exec", start)
        return process.pid

    def output(
        self, process_id: str, fd: int, offset: int = 0, *, tell: bool = False, peek: bool = False
    ) -> OutputStream:
        return _FakeOutput(self, process_id, fd, offset, tell)

    async def stdin(self, process_id: str, offset: int = 0) -> StdinStream:
        self.note("stdin", process_id)
        return _FakeInput(self, self.process(process_id), offset)

    async def wait(self, process_id: str) -> Exit:
        self.note("wait_process", process_id)
        return await self.process(process_id).ended()

    async def signal(self, process_id: str, signal: int, tree: bool = False) -> None:
        self.note("signal", signal)
        self.process(process_id).kill(signal)

    async def clear(self) -> None:
        self.note("clear", None)
        for process in self.processes.values():
            process.kill(9)

    async def resize(self, process_id: str, rows: int, cols: int) -> None:
        self.note("resize", (rows, cols))
        self.process(process_id)

    async def ps(self) -> builtins.list[dict[str, Any]]:
        self.note("ps", None)
        return [
            {
                "id": process.start.id,
                "pid": process.pid,
                "argv": [*process.start.argv],
                "started_ms": 0,
                "running": process.exit is None,
                "exit": process.exit,
            }
            for process in self.processes.values()
        ]

    def process(self, process_id: str) -> FakeProcess:
        try:
            return self.processes[process_id]
        except KeyError:
            raise ProcessNotFound(f"id: there is no process {process_id}", field="id") from None

    # Files

    def read(self, path: checks.PathLike, offset: int = 0, length: int = -1, user: str = "") -> Chunks:
        return _FakeChunks(self, path, offset, length)

    async def read_bytes(self, path: checks.PathLike, offset: int = 0, length: int = -1, user: str = "") -> bytes:
        self.note("read", path)
        content = self._content(path)[offset:]
        return content if length < 0 else content[:length]

    async def write(
        self,
        path: checks.PathLike,
        data: Content | AsyncIterable[bytes],
        *,
        mode: int | None = None,
        append: bool = False,
        parents: bool = False,
        user: str = "",
    ) -> int:
        name = _name(path)
        content = b"".join([piece async for piece in data]) if isinstance(data, AsyncIterable) else bytes(data)
        self.note("write", name)
        parent = str(PurePosixPath(name).parent)
        if parents:
            self._make_parents(parent)
        elif parent not in self.directories:
            raise PathNotFound(f"path: there is no directory {parent}", field="path")
        self.files[name] = (self.files.get(name, b"") if append else b"") + content
        return len(content)

    async def list(
        self, path: checks.PathLike, user: str = "", after: str = "", limit: int = 0
    ) -> builtins.list[Entry]:
        self.note("list_files", path)
        name = _name(path)
        if self._entry(name).kind != "dir":
            raise NotADirectory(f"path: {name} is not a directory", field="path")
        inside = [p for p in (*self.files, *self.directories) if p != "/" and str(PurePosixPath(p).parent) == name]
        return [self._entry(p) for p in sorted(inside) if PurePosixPath(p).name > after][: limit or None]

    async def stat(self, path: checks.PathLike, follow: bool = True, user: str = "") -> Entry:
        self.note("stat", path)
        return self._entry(_name(path))

    async def mkdir(
        self, path: checks.PathLike, parents: bool = False, mode: int | None = None, user: str = ""
    ) -> None:
        self.note("mkdir", path)
        name = _name(path)
        if name in self.files or (name in self.directories and not parents):
            raise AlreadyExists(f"path: {name} is there already", field="path")
        self._make_parents(name)

    async def remove(self, path: checks.PathLike, recursive: bool = False, user: str = "") -> None:
        self.note("remove", path)
        name = _name(path)
        self._entry(name)
        self.files.pop(name, None)
        self.directories.discard(name)

    async def copy(self, path: checks.PathLike, to: checks.PathLike, overwrite: bool = False, user: str = "") -> None:
        self.note("copy", path)
        if _name(to) in self.files and not overwrite:
            raise AlreadyExists(f"to: {to} is there already", field="to")
        self.files[_name(to)] = self._content(path)

    async def move(self, path: checks.PathLike, to: checks.PathLike, overwrite: bool = False, user: str = "") -> None:
        self.note("move", path)
        if _name(to) in self.files and not overwrite:
            raise AlreadyExists(f"to: {to} is there already", field="to")
        self.files[_name(to)] = self._content(path)
        del self.files[_name(path)]

    def pack(self, path: checks.PathLike, user: str = "") -> Chunks:
        return _FakeTar(self, path)

    async def unpack(
        self, path: checks.PathLike, chunks: Content | AsyncIterable[bytes], user: str = ""
    ) -> dict[str, int]:
        name = _name(path)
        data = b"".join([piece async for piece in chunks]) if isinstance(chunks, AsyncIterable) else bytes(chunks)
        self.note("unpack", name)
        found = unpacked(name, data)
        self._make_parents(name)
        self.directories |= {path for path, content in found.items() if content is None}
        files = {path: content for path, content in found.items() if content is not None}
        for path, content in files.items():
            self.files[path] = content
        return {"files": len(files), "bytes": sum(map(len, files.values()))}

    def packed(self, path: checks.PathLike) -> bytes:
        """A tree as a tar archive, whole."""
        self.note("pack", path)
        return packed(self._entry(_name(path)).path, self.files, self.directories)

    def _content(self, path: checks.PathLike) -> bytes:
        entry = self._entry(_name(path))
        if entry.kind == "dir":
            raise IsADirectory(f"path: {entry.path} is a directory", field="path")
        return self.files[entry.path]

    def _entry(self, name: str) -> Entry:
        plain = PurePosixPath(name).name or "/"
        if name in self.files:
            return Entry(plain, name, "file", len(self.files[name]), 0o644, 0, 0, self.files.written[name], None)
        if name in self.directories:
            return Entry(plain, name, "dir", 0, 0o755, 0, 0, 0, None)
        raise PathNotFound(f"path: there is no {name}", field="path")

    def _make_parents(self, name: str) -> None:
        self.directories |= {name, *map(str, PurePosixPath(name).parents)}


class _Files(dict[str, bytes]):
    """Content by path. `written`: when each was, in nanoseconds of a clock that ticks with every write."""

    def __init__(self) -> None:
        super().__init__()
        self.written: dict[str, int] = {}

    def __setitem__(self, path: str, content: bytes) -> None:
        super().__setitem__(path, content)
        self.written[path] = 1 + max(self.written.values(), default=0)


class _FakeOutput(OutputStream):
    def __init__(self, agent: FakeAgent, process_id: str, fd: int, offset: int, tell: bool) -> None:
        self.offset = offset
        self.gaps = []
        self.held = None
        self._agent = agent
        self._id = process_id
        self._fd = fd
        self._tell = tell

    async def _opened(self) -> Self:
        if self._tell:
            end = len(self._agent.process(self._id).streams[self._fd])
            if self.offset > end:
                raise InvalidRequest(f"offset: {self.offset} is not between 0 and {end}", field="offset")
            self.held = (self.offset, end)
        return self

    async def __anext__(self) -> bytes:
        self._agent.note("output", self.offset)
        process = self._agent.process(self._id)
        stream = process.streams[self._fd]
        while self.offset >= len(stream):
            if process.exit is not None:
                raise StopAsyncIteration
            await asyncio.sleep(_TICK_S)
        data = bytes(stream[self.offset :])
        self.offset += len(data)
        return data

    async def aclose(self) -> None:
        return None


class _FakeChunks(Chunks):
    def __init__(self, agent: FakeAgent, path: checks.PathLike, offset: int, length: int) -> None:
        self._agent = agent
        self._path = path
        self._position = offset
        self._left = length

    async def _opened(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        data = (await self._agent.read_bytes(self._path, self._position, self._left))[:16]
        if not data:
            raise StopAsyncIteration
        self._position += len(data)
        if self._left > 0:
            self._left -= len(data)
        return data

    async def aclose(self) -> None:
        return None


class _FakeTar(Chunks):
    def __init__(self, agent: FakeAgent, path: checks.PathLike) -> None:
        self._agent = agent
        self._path = path
        self._done = False

    async def __anext__(self) -> bytes:
        if self._done:
            raise StopAsyncIteration
        self._done = True
        return self._agent.packed(self._path)

    async def aclose(self) -> None:
        return None


class _FakeInput(StdinStream):
    def __init__(self, agent: FakeAgent, process: FakeProcess, asked: int) -> None:
        self._agent = agent
        self._process = process
        self._position = asked

    @property
    def offset(self) -> int:
        return len(self._process.input)

    async def write(self, data: Content) -> None:
        content = bytes(data)
        known = max(0, len(self._process.input) - self._position)
        self._position += len(content)
        self._process.feed(content[known:])
        self._agent.note("write_stdin", content)

    async def drain(self) -> None:
        return None

    async def finished(self) -> None:
        await self._process.ended()

    async def close(self) -> None:
        self._agent.note("close_stdin", None)
        self._process.input_closed = True

    def detach(self) -> None:
        return None


def _name(path: checks.PathLike) -> str:
    checks.path(path)
    return str(PurePosixPath(path))


def _words(argv: Any) -> builtins.list[str]:
    words = [*argv]
    return shlex.split(words[2]) if words[:2] == ["/bin/sh", "-c"] else words
