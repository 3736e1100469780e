"""A process over one WebSocket: both outputs, standard input, signals and size, and a way back after the connection
broke.

The first message starts a process or names one to come back to. Nothing is lost on the way: output is addressed by
offset and waits in the sandbox, where the process waits too once 1 MiB is unread. A client that is gone leaves the
process running.

Of two clients that write to one standard input the later takes over; the earlier gets `{"type": "stdin_closed",
"problem": …}` and goes on reading. So does one whose process has closed its input. What it sends then is dropped, as by
a pipe that nobody reads.
"""

from __future__ import annotations

import asyncio
import json

from starlette.websockets import WebSocket, WebSocketDisconnect

from shoal.client.retrying_agent import RetryingAgent
from shoal.client.signals import signal_number
from shoal.client.stdin import Input
from shoal.cluster.api.access.audit import audited, counted
from shoal.cluster.api.access.auth import Runner, subprotocol
from shoal.cluster.api.processes.output import OutputReader
from shoal.cluster.api.processes.websockets import (
    MAX_PIECE,
    NORMAL,
    close,
    fail,
    guard,
    parse,
    receive,
    send_bytes,
    send_json,
)
from shoal.cluster.api.request.context import Cluster
from shoal.cluster.api.request.problems import document
from shoal.cluster.api.request.route import new_router
from shoal.cluster.api.request.streaming import all_to_end, first_to_end
from shoal.cluster.api.schema.data import Eof, ProcessStart, Resize, Return, Said
from shoal.model.errors import FailedPrecondition, InvalidRequest, ShoalError, Unavailable

FIRST_S = 10.0
"""Seconds that a client has for its first message."""

MAX_TEXT = 1 << 20
_STDIN = 0
_NAMES = {1: "stdout", 2: "stderr"}
_AHEAD = 4
"""Messages of input that wait here while the process does not read: behind them no signal is heard."""

INPUT_STALL_S = 3600.0
"""Seconds after which a client is let go whose input nobody takes: whether it is still there cannot be seen while it is
not read from.
"""


router = new_router("processes")


@router.websocket("/v1/sandboxes/{sandbox_id}/attach", dependencies=[audited("attach"), counted("shoal_execs_total")])
async def attach(
    websocket: WebSocket,
    sandbox_id: str,
    transport: Cluster,
    caller: Runner,
) -> None:
    await websocket.accept(subprotocol(websocket))
    try:
        first = await _first(websocket)
        attachment = await _Attachment.of(websocket, RetryingAgent(transport, sandbox_id), first)
        await attachment.run()
        await close(websocket, NORMAL)
    except WebSocketDisconnect:
        pass  # the process runs on
    except ShoalError as error:
        await fail(websocket, error, caller.request_id)


async def _first(websocket: WebSocket) -> ProcessStart | Return:
    try:
        async with asyncio.timeout(FIRST_S):
            text = await receive(websocket, MAX_TEXT)
    except TimeoutError:
        raise InvalidRequest(
            f"message: none came within {FIRST_S:g} s; say at once what to start", field="message"
        ) from None
    if not isinstance(text, str):
        raise InvalidRequest("message: the first one is text: what to start, as JSON", field="message")
    return parse(Return, text) if _is_return(text) else parse(ProcessStart, text)


def _is_return(text: str) -> bool:
    """Whether it names a process and nothing to run. What is malformed is refused as a start."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and "id" in said and not said.keys() & {"argv", "command"}


class _Attachment:
    """One client at one process."""

    def __init__(
        self,
        websocket: WebSocket,
        agent: RetryingAgent,
        process_id: str,
        outputs: dict[int, OutputReader],
        stdin: Input,
    ) -> None:
        self._websocket = websocket
        self._agent = agent
        self._id = process_id
        self._outputs = outputs
        self._stdin = stdin
        self._waiting: asyncio.Queue[bytes | None] = asyncio.Queue(_AHEAD)  # None: the end

    @classmethod
    async def of(cls, websocket: WebSocket, agent: RetryingAgent, first: ProcessStart | Return) -> _Attachment:
        """Starts the process, or finds it, and tells the client so."""
        if isinstance(first, ProcessStart):
            start = first.start()
            pid = await agent.call(lambda agent: agent.exec(start, pty=first.terminal, merge_stderr=first.merge_stderr))
            outputs = {fd: OutputReader(agent, start.id, fd, 0) for fd in _NAMES}
            await send_json(websocket, {"type": "started", "id": start.id, "pid": pid})
            return cls(websocket, agent, start.id, outputs, Input(agent, start.id, 0))
        outputs = {
            1: OutputReader(agent, first.id, 1, first.stdout_offset),
            2: OutputReader(agent, first.id, 2, first.stderr_offset),
        }
        begins = {f"{_NAMES[fd]}_offset": await source.begin(follow=True) for fd, source in outputs.items()}
        has = None if first.stdin_offset is None else await _input_of(agent, first.id, first.stdin_offset)
        await send_json(websocket, {"type": "started", "id": first.id, **begins, "stdin_offset": has})
        return cls(websocket, agent, first.id, outputs, Input(agent, first.id, first.stdin_offset))

    async def run(self) -> None:
        """Returns when the process has ended and all is told."""
        try:
            await first_to_end(self._listen(), self._feed(), self._tell(), guard(self._websocket))
        finally:
            self._stdin.leave()
            for source in self._outputs.values():
                await source.aclose()

    # To the client

    async def _tell(self) -> None:
        await all_to_end(*(self._pump(fd) for fd in self._outputs))
        end = await self._agent.call(lambda agent: agent.wait(self._id))
        await send_json(self._websocket, {"type": "exit", "returncode": end.exit, "timed_out": end.timed_out})

    async def _pump(self, fd: int) -> None:
        mark = bytes((fd,))
        async for data in self._outputs[fd]:
            await send_bytes(self._websocket, mark + data)
        await send_json(self._websocket, {"type": "end", "stream": _NAMES[fd]})

    # From the client

    async def _listen(self) -> None:
        while True:
            message = await receive(self._websocket, MAX_PIECE + 1)
            if isinstance(message, str):
                await self._obey(message)
            elif message[:1] == bytes((_STDIN,)):
                await self._hand_on(message[1:])
            else:
                raise InvalidRequest(
                    "message: a binary one begins with a 0 byte, then standard input follows", field="message"
                )

    async def _obey(self, text: str) -> None:
        said = parse(Said, text).root
        if isinstance(said, Eof):
            await self._waiting.put(None)
        elif isinstance(said, Resize):
            await self._agent.call(lambda agent: agent.resize(self._id, said.rows, said.cols))
        else:
            number = signal_number(said.signal)
            await self._agent.call(lambda agent: agent.signal(self._id, number, said.tree))

    async def _hand_on(self, piece: bytes | None) -> None:
        try:
            async with asyncio.timeout(INPUT_STALL_S):
                await self._waiting.put(piece)
        except TimeoutError:
            raise Unavailable(f"the process took none of its input for {INPUT_STALL_S:g} s; come back later") from None

    async def _feed(self) -> None:
        try:
            while True:
                piece = await self._next_piece()
                await (self._stdin.close.aio() if piece is None else self._stdin.write.aio(piece))
        except FailedPrecondition as error:
            await send_json(self._websocket, {"type": "stdin_closed", "problem": document(error)})
        while True:
            await self._waiting.get()  # what nobody wants

    async def _next_piece(self) -> bytes | None:
        """The client's next piece.

        Raises where the one before turns out to be unwelcome: not only the next would be lost.
        """
        if not self._waiting.empty():
            return self._waiting.get_nowait()
        getting = asyncio.ensure_future(self._waiting.get())
        watching = asyncio.ensure_future(self._stdin.watch.aio())
        try:
            await asyncio.wait({getting, watching}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done() and not getting.done():
                watching.result()
            return await getting
        finally:
            getting.cancel()
            watching.cancel()
            await asyncio.wait({getting, watching})
            if watching.done() and not watching.cancelled():
                watching.exception()


async def _input_of(agent: RetryingAgent, process_id: str, offset: int) -> int | None:
    """How much of its input a process has, None where that is closed. Whoever writes there is put out."""
    try:
        stream = await agent.call(lambda agent: agent.stdin(process_id, offset))
    except FailedPrecondition:
        return None
    except InvalidRequest as error:
        raise InvalidRequest(f"stdin_offset: {error.message}", field="stdin_offset") from None
    stream.detach()
    return stream.offset
