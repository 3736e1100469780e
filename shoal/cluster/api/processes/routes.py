"""Processes: start, list, read and write by offset, signal, resize, wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Annotated, Any

from fastapi import Query
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from shoal.client.retrying_agent import RetryingAgent
from shoal.client.signals import signal_number
from shoal.cluster.api.access.audit import audited, counted
from shoal.cluster.api.access.auth import needs
from shoal.cluster.api.files.routes import itself
from shoal.cluster.api.processes.output import OutputReader, output_response
from shoal.cluster.api.request.answers import Json
from shoal.cluster.api.request.bodies import streamed
from shoal.cluster.api.request.context import Cluster
from shoal.cluster.api.request.route import StartRoute, new_router
from shoal.cluster.api.schema.data import (
    FD,
    Offset,
    Processes,
    ProcessStart,
    Signal,
    Size,
    Started,
    StdinOffset,
    Stream,
    Waited,
)
from shoal.model import verbs
from shoal.model.access import Scope
from shoal.model.errors import DeadlineExceeded, SandboxEnded
from shoal.model.ids import MAIN_PROCESS
from shoal.wire.agent import Agent, Exit

STDIN_IDLE_S = 300.0
"""Seconds for which a body of standard input may pause, as a person at a terminal does; and for which the process may
not read from it, since nobody notices meanwhile whether the client is still there."""

MAX_WAIT_S = 60.0
_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}
_RAW = {"requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}}

_AT = "/v1/sandboxes/{sandbox_id}/processes"
_ONE = _AT + "/{process_id}"

router = new_router("processes", StartRoute, dependencies=[needs(Scope.RUN)])


@router.post(
    _AT,
    status_code=201,
    responses={201: {"model": Started}},
    dependencies=[audited("process.start"), counted("shoal_execs_total")],
)
async def start_process(sandbox_id: str, body: ProcessStart, transport: Cluster) -> Response:
    """Starts a process, and returns as soon as it runs."""
    start = body.start()
    pid = await RetryingAgent(transport, sandbox_id).call(
        lambda agent: agent.exec(start, pty=body.terminal, merge_stderr=body.merge_stderr)
    )
    return Json({"id": start.id, "pid": pid}, 201)


@router.get(_AT, responses={200: {"model": Processes}})
async def list_processes(sandbox_id: str, transport: Cluster) -> Response:
    """The processes that clients started and the sandbox remembers."""
    rows = await RetryingAgent(transport, sandbox_id).call(lambda agent: agent.ps())
    return Json({"processes": [_row(row) for row in rows]})


@router.get(f"{_ONE}/output", responses=_BYTES)
async def read_output(
    sandbox_id: str,
    process_id: str,
    request: Request,
    transport: Cluster,
    stream: Annotated[Stream, Query()] = "stdout",
    offset: Annotated[Offset, Query()] = 0,
    follow: Annotated[bool, Query(description="To the end of the stream; false: what there is now")] = True,
    peek: Annotated[bool, Query(description="Only look: the process does not count this as a reader")] = False,
) -> Response:
    """Its output from an offset on, as it comes. A reader that comes back with its offset misses nothing."""
    source = OutputReader(RetryingAgent(transport, sandbox_id), process_id, FD[stream], offset, peek=peek)
    return await output_response(source, request, follow=follow)


@router.post(f"{_ONE}/stdin", responses={200: {"model": StdinOffset}}, openapi_extra=_RAW)
async def write_stdin(
    sandbox_id: str,
    process_id: str,
    request: Request,
    transport: Cluster,
    offset: Annotated[Offset, Query(description="Where the first byte of the body stands in the input")] = 0,
    eof: Annotated[bool, Query(description="Close it after the body")] = False,
) -> Response:
    """Writes to its standard input. Answers once the sandbox has all of it, so it may be sent again if the answer was
    lost.

    There is one writer at a time: a later one takes over, and the earlier one gets `failed_precondition`.
    """
    agent = await RetryingAgent(transport, sandbox_id).call(itself)
    return Json({"offset": await _feed(agent, process_id, request, offset, eof)})


@router.post(f"{_ONE}/signal", status_code=204, dependencies=[audited("process.signal")])
async def send_signal(sandbox_id: str, process_id: str, body: Signal, transport: Cluster) -> Response:
    """Sends a signal. Does nothing if the process has ended."""
    number = signal_number(body.signal)
    await RetryingAgent(transport, sandbox_id).call(lambda agent: agent.signal(process_id, number, body.tree))
    return Response(status_code=204)


@router.post(f"{_ONE}/resize", status_code=204)
async def resize_terminal(sandbox_id: str, process_id: str, body: Size, transport: Cluster) -> Response:
    """Sets the size of its terminal."""
    await RetryingAgent(transport, sandbox_id).call(lambda agent: agent.resize(process_id, body.rows, body.cols))
    return Response(status_code=204)


@router.get(f"{_ONE}/wait", responses={200: {"model": Waited}})
async def wait_for_process(
    sandbox_id: str,
    process_id: str,
    transport: Cluster,
    timeout: Annotated[float, Query(ge=0, le=MAX_WAIT_S, allow_inf_nan=False)] = 30.0,
) -> Response:
    """How it ended, as soon as it has; after `timeout` seconds, that it still runs."""
    end = await _end(RetryingAgent(transport, sandbox_id), process_id, timeout)
    return Json(
        {
            "running": end is None,
            "returncode": None if end is None else end.exit,
            "timed_out": end is not None and end.timed_out,
            "duration": None if end is None else end.duration_s,
        }
    )


async def _end(agent: RetryingAgent, process_id: str, timeout: float) -> Exit | None:
    """A process's end; None if it still runs after `timeout` seconds."""
    try:
        if timeout == 0:
            rows = await agent.call(lambda agent: agent.ps())
            if any(row["id"] == process_id and row["running"] for row in rows):
                return None
            return await agent.call(lambda agent: agent.wait(process_id))  # at once: it has ended, or there is none
        async with asyncio.timeout(timeout):
            return await agent.call(lambda agent: agent.wait(process_id))
    except TimeoutError:
        return None
    except SandboxEnded:
        info = None if process_id != MAIN_PROCESS else await agent.transport.ask(verbs.get, agent.sandbox_id)
        if info is None or info.returncode is None:
            raise
        return Exit(info.returncode, False, (info.ended_at or 0) - (info.started_at or info.ended_at or 0))


async def _feed(agent: Agent, process_id: str, request: Request, offset: int, eof: bool) -> int:
    stdin = await agent.stdin(process_id, offset)
    try:
        async for piece in streamed(request, STDIN_IDLE_S):
            await _taken(stdin.write(piece))
        await _taken(stdin.close() if eof else stdin.drain())
        return stdin.offset
    except ClientDisconnect:
        return stdin.offset  # nobody reads this answer; what came was written, and may be sent again
    finally:
        stdin.detach()


async def _taken(writing: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(STDIN_IDLE_S):
            await writing
    except TimeoutError:
        raise DeadlineExceeded(
            f"the process did not read its input within {STDIN_IDLE_S:g} s; send it again later with the same offset"
        ) from None


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "pid": row["pid"],
        "argv": row["argv"],
        "started_at": row["started_ms"] / 1000,
        "running": row["running"],
        "returncode": row["exit"],
    }
