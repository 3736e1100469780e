"""The agent's calls for processes."""

from __future__ import annotations

from typing import Any

from shoal.model import errors
from shoal.wire import checks, records
from shoal.wire.budget import Share
from shoal.wire.connection import Connection
from shoal.wire.exchanges import Gather
from shoal.wire.flows import OutputStream, StdinStream
from shoal.wire.records import Exit, RunResult, Start, Terminal

DEFAULT_MAX_OUTPUT = 8 << 20
REPLY_S = 30.0
"""Seconds that a quick call may take."""

_KILL_S = 30.0
"""Seconds after a process's own timeout within which its end must arrive."""

_MAX_PROCESSES = 100_000


class ProcessCalls:
    """Starts, reads, feeds and ends processes."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def run(
        self,
        start: Start,
        *,
        input: bytes | None = None,
        max_output: int = DEFAULT_MAX_OUTPUT,
        merge_stderr: bool = False,
        share: Share | None = None,
    ) -> RunResult:
        """Runs a command to its end and returns its result, in one round trip.

        `input`: its standard input; None: none. `max_output`: bytes kept of stdout and of stderr (0 to 256 MiB each).
        `merge_stderr`: sends stderr to stdout.
        `share`: counts the output in memory; its budget may drop the output (`Unavailable`, not retryable). The caller
        releases it after use. Sending the same start again, after a broken connection, waits for or repeats the answer;
        the command never runs twice.
        """
        request = start.request("run")
        request["max_output"] = checks.whole(max_output, "max_output", 0, checks.MAX_OUTPUT)
        if checks.flag(merge_stderr, "merge_stderr"):
            request["merge_stderr"] = True
        data = None
        if input is not None:
            data = checks.content(input, "input")
            request["stdin"] = True
        gather = Gather(self.connection, max_output, share)
        self.connection.start(gather, request, data)
        try:
            reply = await gather.reply(start.timeout_s + _KILL_S if start.timeout_s else None)
            return records.run_result(reply, start.id, gather.output, gather.errdata)
        except BaseException:
            if share is not None:
                share.release()
            raise

    async def exec(
        self,
        start: Start,
        *,
        pty: Terminal | None = None,
        merge_stderr: bool = False,
        stdin: bool = True,
        tail: bool = False,
    ) -> int:
        """Starts a process and returns its pid in the sandbox. Sending the same start again starts nothing.

        `pty`: gives it a terminal. `merge_stderr`: sends stderr to stdout. `stdin`: whether it has one.
        `tail`: if nobody reads its output, drops the oldest instead of blocking the process.
        """
        request = start.request("exec")
        if pty is not None:
            request["pty"] = pty.request()
            if pty.term is not None:
                request["env"] = {**request.get("env", {}), "TERM": pty.term}
        request["merge_stderr"] = checks.flag(merge_stderr, "merge_stderr")
        request["stdin"] = checks.flag(stdin, "stdin")
        request["tail"] = checks.flag(tail, "tail")
        reply = await self.connection.request(request, timeout_s=REPLY_S)
        if reply.get("id") != start.id:
            raise errors.Internal("malformed answer from the sandbox: id is another process's")
        return records.whole(reply, "pid", 0, 1 << 31)

    def output(
        self, process_id: str, fd: int, offset: int = 0, *, tell: bool = False, peek: bool = False
    ) -> OutputStream:
        """A process's stdout (`fd` 1) or stderr (2) from `offset` on, live, to its end.

        `tell`: reports how much there is at this moment (`OutputStream.held`); an offset beyond it is `InvalidRequest`.
        `peek`: the process does not wait for this reader, which may miss later output of a process started with `tail`
        (`OutputStream.gaps`).
        """
        request: dict[str, Any] = {
            "op": "output",
            "id": checks.process_id(process_id),
            "fd": checks.whole(fd, "fd", 1, 2),
            "offset": checks.whole(offset, "offset", 0, checks.MAX_OFFSET),
        }
        if checks.flag(tell, "tell"):
            request["tell"] = True
        if checks.flag(peek, "peek"):
            request["peek"] = True
        return OutputStream(self.connection, request, offset, REPLY_S)

    async def stdin(self, process_id: str, offset: int = 0) -> StdinStream:
        """Opens a process's standard input for writing. `offset`: the position of the first byte written."""
        checks.whole(offset, "offset", 0, checks.MAX_OFFSET)
        stream = self.connection.stream({"op": "stdin", "id": checks.process_id(process_id), "offset": offset})
        try:
            first = await stream.receive(REPLY_S)
            if first is None:
                raise errors.FailedPrecondition("the process's standard input is closed", state="closed")
            if not isinstance(first, dict):
                raise errors.Internal("the sandbox sent unexpected data")
            return StdinStream(stream, offset, records.whole(first, "offset", 0, checks.MAX_OFFSET))
        except BaseException:
            stream.cancel()
            raise

    async def wait(self, process_id: str) -> Exit:
        """Waits for a process's end, without a time limit."""
        return records.exit_of(await self.connection.request({"op": "wait", "id": checks.process_id(process_id)}))

    async def signal(self, process_id: str, signal: int, tree: bool = False) -> None:
        """Sends a signal to a process's group, or with `tree` to all descendants. Does nothing if it has ended."""
        request = {
            "op": "signal",
            "id": checks.process_id(process_id),
            "signal": checks.whole(signal, "signal", 0, 64),
            "tree": checks.flag(tree, "tree"),
        }
        await self.connection.request(request, timeout_s=REPLY_S)

    async def clear(self) -> None:
        """Kills every process in the sandbox but the agent, and returns once none is left.

        `FailedPrecondition` while the sandbox's own command runs.
        """
        await self.connection.request({"op": "clear"}, timeout_s=REPLY_S)

    async def resize(self, process_id: str, rows: int, cols: int) -> None:
        """Resizes a process's terminal."""
        request = {"op": "resize", "id": checks.process_id(process_id), **checks.size(rows, cols)}
        await self.connection.request(request, timeout_s=REPLY_S)

    async def ps(self) -> list[dict[str, Any]]:
        """The processes that clients started and the agent remembers: `id`, `pid`, `argv`, `started_ms`, `running`,
        `exit`.
        """
        found = (await self.connection.request({"op": "ps"}, timeout_s=REPLY_S)).get("processes")
        if type(found) is not list or len(found) > _MAX_PROCESSES:
            raise errors.Internal("malformed answer from the sandbox: processes is not a list")
        return [records.process(row) for row in found]
