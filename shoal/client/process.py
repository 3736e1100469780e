"""Processes in a sandbox, and the result of running one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, AnyStr, Generic

from shoal.client.contexts import Context
from shoal.client.dual_method import dual_method
from shoal.client.html import block, card
from shoal.client.output import Output, ProcessBytes, bytes_output, text_output
from shoal.client.retrying_agent import RetryingAgent
from shoal.client.signals import signal_number
from shoal.client.stdin import Input
from shoal.model import verbs
from shoal.model.errors import DeadlineExceeded, SandboxEnded, ShoalError
from shoal.model.ids import MAIN_PROCESS
from shoal.model.validate import MAX_TIMEOUT, check_number

if TYPE_CHECKING:
    from shoal.wire.agent import Start

__all__ = ["Input", "Output", "Process", "ProcessInfo", "Result"]


@dataclass(frozen=True, slots=True)
class Result(Generic[AnyStr]):
    """The result of `Sandbox.run`. `returncode`: the exit code, or `-n` if signal *n* ended it (-9 after a timeout).

    `duration` in seconds, measured in the sandbox. `truncated`: there was more output than `max_output`.
    """

    returncode: int
    stdout: AnyStr
    stderr: AnyStr
    duration: float
    timed_out: bool
    truncated: bool

    def _repr_html_(self) -> str:
        facts = {"after": f"{self.duration:.3g} s", "more output": "was dropped" if self.truncated else None}
        how = "timed out" if self.timed_out else f"exit code {self.returncode}"
        stderr = block(self.stderr)
        named = f"<small>stderr</small>{stderr}" if stderr else ""
        return card(f"{'✓' if self.returncode == 0 else '✗'} <b>{how}</b>", facts, block(self.stdout), named)


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process started by `exec` or `run`, or the sandbox's own command. `started_at` in unix seconds."""

    id: str
    pid: int
    argv: tuple[str, ...]
    started_at: float
    running: bool
    returncode: int | None


class Process(Context, Generic[AnyStr]):
    """A process in a sandbox: `Sandbox.exec` starts one, `Sandbox.process` finds it again by its `id`.

    `stdout` and `stderr` are live, and `stdin` can be written to. As with any pipe, the process waits once 1 MiB of
    output is unread: read both, or use `Sandbox.run`. Leaving its `with` block kills it.
    """

    stdout: Output[AnyStr]
    stderr: Output[AnyStr]
    stdin: Input

    def __init__(self, agent: RetryingAgent, process_id: str, *, text: bool, new: bool, pid: int | None = None) -> None:
        self._agent = agent
        self._id = process_id
        self._pid = pid
        self._returncode: int | None = None
        self._timed_out = False
        output: Any = text_output if text else bytes_output
        self.stdout = output(ProcessBytes(agent, process_id, 1))
        self.stderr = output(ProcessBytes(agent, process_id, 2))
        self.stdin = Input(agent, process_id, 0 if new else None)

    @property
    def id(self) -> str:
        """`p-…`; with the sandbox's id it identifies the process from any machine."""
        return self._id

    @property
    def pid(self) -> int | None:
        """Its pid in the sandbox, if known."""
        return self._pid

    @property
    def returncode(self) -> int | None:
        """The exit code as of the last `wait` or `poll`; None while it runs."""
        return self._returncode

    @property
    def timed_out(self) -> bool:
        """Whether its own `timeout` ended it, as of the last `wait` or `poll`."""
        return self._timed_out

    @dual_method
    async def wait(self, timeout: float | None = None) -> int:
        """Waits for its end and returns its exit code, `-n` if signal *n* ended it.

        Raises `DeadlineExceeded` after `timeout` seconds (the process goes on), `SandboxEnded`, `ProcessNotFound`.
        """
        if self._returncode is not None:
            return self._returncode
        if timeout is not None:
            check_number("timeout", timeout, -1, MAX_TIMEOUT, "seconds")
        try:
            async with asyncio.timeout(timeout):
                return await self._wait()
        except TimeoutError:
            raise DeadlineExceeded(f"process {self._id} still runs after {timeout:g} s") from None

    @dual_method
    async def poll(self) -> int | None:
        """Its exit code where it has ended, None where it runs. `ProcessNotFound`, `SandboxEnded`."""
        if self._returncode is not None:
            return self._returncode
        try:
            rows = await self._agent.call(lambda agent: agent.ps())
        except SandboxEnded:
            if self._id != MAIN_PROCESS:
                raise
            rows = []
        if any(row["id"] == self._id and row["running"] for row in rows):
            return None
        return await self._wait()  # returns at once: it has ended, or does not exist

    @dual_method
    async def kill(self, signal: int | str = "KILL", *, tree: bool = False) -> None:
        """Sends a signal (a number or a name such as `"TERM"`) to its process group, or with `tree` to all descendants.

        Does nothing if the process has ended.
        """
        number = signal_number(signal)
        await self._agent.call(lambda agent: agent.signal(self._id, number, tree))

    @dual_method
    async def terminate(self) -> None:
        """Sends SIGTERM."""
        await self.kill.aio("TERM")

    @dual_method
    async def resize(self, rows: int, cols: int) -> None:
        """Sets the size of its terminal; `FailedPrecondition` if it has none."""
        await self._agent.call(lambda agent: agent.resize(self._id, rows, cols))

    @dual_method
    async def close(self) -> None:
        """Closes the output streams; the process goes on."""
        await self.stdout.close.aio()
        await self.stderr.close.aio()

    async def _wait(self) -> int:
        try:
            end = await self._agent.call(lambda agent: agent.wait(self._id))
        except SandboxEnded as ended:
            if self._id != MAIN_PROCESS:
                raise
            info = await self._agent.transport.ask(verbs.get, self._agent.sandbox_id)
            if info.returncode is None:
                raise ended from None
            self._returncode, self._timed_out = info.returncode, False
            return info.returncode
        self._returncode, self._timed_out = end.exit, end.timed_out
        return end.exit

    @dual_method
    async def _leave(self) -> None:
        try:
            if self._returncode is None:
                await self.kill.aio(tree=True)
            await self.close.aio()
        except ShoalError:
            pass  # the process or its sandbox is gone already

    def __repr__(self) -> str:
        return f"<Process {self._id} in {self._agent.sandbox_id}, returncode={self._returncode}>"


def start_of(
    process_id: str,
    argv: Sequence[str],
    env: Mapping[str, str | None] | None,
    workdir: str | os.PathLike[str] | None,
    user: str | None,
    timeout: float | None,
) -> Start:
    """The process to start, made from a caller's arguments; `shoal.wire` checks the rest."""
    from shoal.wire.agent import Start

    if timeout is not None:
        check_number("timeout", timeout, 0, MAX_TIMEOUT, "seconds")
    return Start(process_id, argv, {} if env is None else env, workdir, "" if user is None else user, timeout or 0)
