"""The processes of a sandbox: what `Sandbox` runs, starts and finds in it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shoal.client.arguments import argv_of
from shoal.client.contexts import Context
from shoal.client.dual_method import dual_method
from shoal.client.html import Listed
from shoal.client.output import Output
from shoal.client.overloads import exec_call, run_call
from shoal.client.process import Process, ProcessInfo, Result, start_of
from shoal.client.retrying_agent import RetryingAgent
from shoal.client.stdin import Input
from shoal.model.errors import CommandFailed, DeadlineExceeded, FailedPrecondition, InvalidRequest, ShoalError
from shoal.model.ids import MAIN_PROCESS, new_process_id
from shoal.model.info import SandboxInfo

if TYPE_CHECKING:
    from shoal.wire.agent import RunResult, Terminal

MAX_OUTPUT = 8 << 20
"""Bytes of stdout, and of stderr, that `run` keeps by default."""

_TAIL = 2000


class SandboxProcesses(Context):
    """The part of a `Sandbox` that is about processes."""

    def __init__(self, agent: RetryingAgent, info: SandboxInfo) -> None:
        self._agent = agent
        self._info = info
        self._main: Process[str] | None = None

    @run_call
    @dual_method
    async def run(
        self,
        *command: str | Sequence[str],
        input: str | bytes | None = None,
        timeout: float | None = None,
        check: bool = False,
        max_output: int = MAX_OUTPUT,
        env: Mapping[str, str | None] | None = None,
        workdir: str | os.PathLike[str] | None = None,
        user: str | None = None,
        text: bool = True,
        merge_stderr: bool = False,
    ) -> Result[Any]:
        """Runs a command to its end and returns its `Result`: one round trip.

        `command`: one string is a line for `/bin/sh -c`; a list, or several strings, are the program and its arguments.
        `input`: its standard input; default empty. `timeout`
        in seconds: after it the whole process tree is killed, `timed_out` is True and `returncode` -9. `max_output`:
        bytes kept of stdout and of stderr (up to 256 MiB); if there is more, it is dropped and `truncated` is True.
        `env` is added to the sandbox's own; None removes a variable. `text` False: bytes. `merge_stderr`: sends stderr
        to `stdout`. `check`: raises `CommandFailed` if `returncode` is not 0, `DeadlineExceeded` after a timeout.

        Raises `CommandNotFound`, `CommandNotExecutable`, `UserNotFound`, `InvalidRequest`, `SandboxEnded`,
        `Unavailable`.
        """
        argv = argv_of(command)
        data = input.encode("utf-8", "surrogateescape") if isinstance(input, str) else input
        start = start_of(new_process_id(), argv, env, workdir, user, timeout)
        ran = await self._agent.call(
            lambda agent: agent.run(start, input=data, max_output=max_output, merge_stderr=merge_stderr)
        )
        if check and (ran.timed_out or ran.exit != 0):
            raise _failure(argv, ran, timeout)
        return _result(ran, text)

    @exec_call
    @dual_method
    async def exec(
        self,
        *command: str | Sequence[str],
        env: Mapping[str, str | None] | None = None,
        workdir: str | os.PathLike[str] | None = None,
        user: str | None = None,
        timeout: float | None = None,
        pty: bool | tuple[int, int] = False,
        echo: bool = True,
        term: str | None = None,
        text: bool = True,
        merge_stderr: bool = False,
    ) -> Process[Any]:
        """Starts a process and returns it running.

        `command`, `env`, `workdir`, `user`, `timeout`, `text` and `merge_stderr` are as in `run`. `pty`: a terminal,
        True or (rows, columns); all its output is then in `stdout`. `echo` False: the terminal does not repeat its
        input in the output. `term`: the terminal's kind, the variable TERM; by default the sandbox's own, else `xterm`.

        Raises `CommandNotFound`, `CommandNotExecutable`, `UserNotFound`, `InvalidRequest`, `SandboxEnded`,
        `Unavailable`.
        """
        terminal = _terminal(pty, echo, term)
        start = start_of(new_process_id(), argv_of(command), env, workdir, user, timeout)
        pid = await self._agent.call(lambda agent: agent.exec(start, pty=terminal, merge_stderr=merge_stderr))
        return Process(self._agent, start.id, text=text, new=True, pid=pid)

    def process(self, process_id: str, *, text: bool = True) -> Process[Any]:
        """The process with this id, with its output from the start. Its first use may raise `ProcessNotFound`."""
        return Process(self._agent, process_id, text=text, new=False)

    @dual_method
    async def processes(self) -> Sequence[ProcessInfo]:
        """The processes that run, and the last ones that ended."""
        rows = await self._agent.call(lambda agent: agent.ps())
        found = [
            ProcessInfo(r["id"], r["pid"], tuple(r["argv"]), r["started_ms"] / 1000, r["running"], r["exit"])
            for r in rows
        ]
        return Listed(found, "id pid argv started_at running returncode")

    # Its own command

    @property
    def stdout(self) -> Output[str]:
        """Its own command's stdout from the start; after the sandbox's end, what was kept of it."""
        return self._own_command().stdout

    @property
    def stderr(self) -> Output[str]:
        """Like `stdout`, for stderr."""
        return self._own_command().stderr

    @property
    def stdin(self) -> Input:
        """The standard input of its own command."""
        return self._own_command().stdin

    def _own_command(self) -> Process[str]:
        if not self._info.spec.command:
            raise FailedPrecondition(
                "this sandbox has no command of its own; `exec` and `run` start processes in it",
                state=self._info.state.value,
            )
        if self._main is None:
            self._main = Process(self._agent, MAIN_PROCESS, text=True, new=False)
        return self._main


def _result(ran: RunResult, text: bool) -> Result[Any]:
    stdout: str | bytes = ran.stdout
    stderr: str | bytes = ran.stderr
    if text:
        stdout, stderr = ran.stdout.decode("utf-8", "replace"), ran.stderr.decode("utf-8", "replace")
    return Result(ran.exit, stdout, stderr, ran.duration_s, ran.timed_out, ran.truncated)


def _failure(argv: Sequence[str], ran: RunResult, timeout: float | None) -> ShoalError:
    stdout, stderr = (data[-_TAIL:].decode("utf-8", "replace") for data in (ran.stdout, ran.stderr))
    command = " ".join(argv)
    command = command if len(command) <= 80 else command[:77] + "..."
    if ran.timed_out:
        return DeadlineExceeded(f"{command!r} was killed after {timeout:g} s", stdout=stdout, stderr=stderr)
    last = stderr.strip().rpartition("\n")[2][:200]
    return CommandFailed(
        f"{command!r} exited with {ran.exit}{': ' + last if last else ''}",
        returncode=ran.exit,
        stdout=stdout,
        stderr=stderr,
    )


def _terminal(pty: bool | tuple[int, int], echo: bool, term: str | None) -> Terminal | None:
    if pty is False:
        if term is not None or not echo:
            field = "term" if echo else "echo"
            raise InvalidRequest(f"{field}: only a terminal has it; add pty=True", field=field)
        return None
    from shoal.wire.agent import Terminal

    if pty is True:
        return Terminal(echo=echo, term=term)
    try:
        rows, columns = pty
    except (TypeError, ValueError):
        raise InvalidRequest(f"pty: {pty!r:.80} is neither True nor (rows, columns)", field="pty") from None
    return Terminal(rows, columns, echo, term)
