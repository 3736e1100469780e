"""Connects a process in a sandbox to this terminal, or to pipes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import Coroutine, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shoal.model.errors import FailedPrecondition, SandboxEnded, ShoalError

if TYPE_CHECKING:
    from shoal.client.output import Output
    from shoal.client.process import Process

_CHUNK = 64 * 1024


def terminal_size() -> tuple[int, int]:
    """(rows, columns) of this terminal."""
    for fd in (0, 1, 2):
        try:
            columns, rows = os.get_terminal_size(fd)
        except OSError:
            continue
        if rows and columns:
            return rows, columns
    return 24, 80


def is_terminal(fd: int) -> bool:
    return os.isatty(fd)


async def attach(process: Process[bytes], *, stdin: bool, pty: bool) -> int:
    """Copies input and output until the process ends; returns its exit code.

    If it is cancelled, or nobody reads our output any more, it kills the process tree. With `pty` the terminal is raw
    meanwhile, and its changes of size are passed on.
    """
    async with process:
        with _raw_terminal(pty and stdin and is_terminal(0)), _resizing(process, pty):
            feeding = _Feeder(process) if stdin else None
            if feeding is None:
                await process.stdin.close.aio()
            else:
                feeding.start()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(copy(process.stdout, 1))
                    if not pty:
                        group.create_task(copy(process.stderr, 2))
                    waiting = group.create_task(process.wait.aio())
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None  # the others are the same
            finally:
                if feeding is not None:
                    await feeding.stop()
            return waiting.result()


async def copy(output: Output[Any], fd: int) -> None:
    """Copies an output to a descriptor as it comes; `BrokenPipeError` once nobody reads the descriptor."""
    async for chunk in output:
        await write(fd, chunk)


async def write(fd: int, chunk: str | bytes) -> None:
    """Writes all of `chunk` to a descriptor, without a time limit."""
    data = chunk.encode("utf-8", "surrogateescape") if isinstance(chunk, str) else chunk
    await asyncio.to_thread(_write_all, fd, data)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class _Feeder:
    """Copies our stdin to the process's, in a daemon thread, which can read every kind of input."""

    def __init__(self, process: Process[bytes]) -> None:
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, name="stdin", daemon=True).start()

    async def stop(self) -> None:
        """Stops passing on input."""
        await self._watch_no_more()

    def _run(self) -> None:
        try:
            while data := self._read():
                self._await(self._pass_on(data))
            self._await(self._end())
        except (FailedPrecondition, SandboxEnded, CancelledError):
            pass  # it has closed its input, or ended
        except ShoalError as error:
            sys.stderr.write(f"shoal: cannot pass on the input: {error}\n")

    async def _pass_on(self, data: bytes) -> None:
        await self._watch_no_more()
        await self._process.stdin.write.aio(data)
        # The next key may come late; if the connection breaks before, this one must not be lost.
        self._watching = self._loop.create_task(self._process.stdin.watch.aio())
        self._watching.add_done_callback(_seen)

    async def _end(self) -> None:
        await self._watch_no_more()
        await self._process.stdin.close.aio()

    async def _watch_no_more(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])

    def _read(self) -> bytes:
        try:
            return os.read(0, _CHUNK)
        except OSError:
            return b""  # no stdin, or the terminal went away

    def _await(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # the loop is closed
            coroutine.close()
            raise CancelledError from None
        future.result()


def _seen(watching: asyncio.Task[None]) -> None:
    if not watching.cancelled():
        watching.exception()  # the next write raises the same


@contextmanager
def _raw_terminal(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextmanager
def _resizing(process: Process[bytes], wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    loop = asyncio.get_running_loop()
    running: set[asyncio.Task[None]] = set()

    def changed() -> None:
        task = loop.create_task(_resize(process))
        running.add(task)
        task.add_done_callback(running.discard)

    loop.add_signal_handler(signal.SIGWINCH, changed)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        for task in running:
            task.cancel()


async def _resize(process: Process[bytes]) -> None:
    try:
        await process.resize.aio(*terminal_size())
    except ShoalError:
        pass  # it has just ended, or the next change of size repeats this
