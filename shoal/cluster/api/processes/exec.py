"""One command in one call: the hot path, one round trip to the agent.

A client that goes away only loses its answer: the process runs on, to its end or its timeout. A call with the same `id`
within 30 s joins the run or repeats its answer, unless the run took over a second and its client had gone.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from shoal.client.retrying_agent import RetryingAgent
from shoal.cluster.api.access.audit import Counted, audited, counted
from shoal.cluster.api.access.auth import needs
from shoal.cluster.api.request.answers import Json
from shoal.cluster.api.request.context import Cluster, context_of
from shoal.cluster.api.request.route import StartRoute, calls_of, new_router
from shoal.cluster.api.request.streaming import StreamingBody, gone
from shoal.cluster.api.schema.data import Exec, ExecResult
from shoal.model.access import Scope
from shoal.model.errors import InvalidRequest
from shoal.wire.agent import RunResult
from shoal.wire.budget import Budget, Share

_AT_ONCE = 256 << 10
"""Bytes of output up to which an answer is built in one piece. A longer one is built and sent in pieces, so that no
call blocks the loop, and its text is never in memory together with its bytes."""

MOST_HELD = 512 << 20
"""Bytes of output that all calls of this replica together may hold in memory."""

_STALL_S = 60.0
"""Seconds for which a client may not read from a long answer, all of which is in memory."""

_PIECE = 192 << 10  # a multiple of three, for base64
_WATCH_AFTER_S = 1.0
"""Seconds after which a call watches whether its client is still there."""


class ExecRoute(StartRoute):
    """FastAPI resolves a handler's dependencies anew for each call, which costs more than all else on this path. Here
    they are known."""

    def inner_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        counts = [call for call in calls_of(self.dependant) if isinstance(call, Counted)]

        async def handle(request: Request) -> Response:
            for count in counts:
                await count(request)
            if not await request.body():
                raise InvalidRequest("body: it is missing; send JSON", field="body")
            try:
                body = Exec.model_validate(await request.json())
            except ValidationError as error:
                found = error.errors(include_url=False, include_input=False)
                raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in found]) from None
            answer: Response = await self.endpoint(
                request.path_params["sandbox_id"], body, request, request.app.state.transport
            )
            return answer

        return handle


router = new_router("processes", ExecRoute)


@router.post(
    "/v1/sandboxes/{sandbox_id}/exec",
    response_class=Response,
    responses={200: {"model": ExecResult}},
    dependencies=[needs(Scope.RUN), audited("exec"), counted("shoal_execs_total")],
)
async def exec_command(sandbox_id: str, body: Exec, request: Request, transport: Cluster) -> Response:
    """Runs a command to its end and returns what it printed.

    If many long outputs are asked for at once, there may be no room for one: `unavailable`, not `retryable`, and the
    command runs on. Start such commands as processes, and read their output as it comes.
    """
    began = time.perf_counter()
    start = body.start()
    data = body.stdin()
    budget: Budget = request.app.state.outputs
    share = budget.share()
    call = RetryingAgent(transport, sandbox_id).call(
        lambda agent: agent.run(
            start, input=data, max_output=body.max_output, merge_stderr=body.merge_stderr, share=share
        )
    )
    result = await _while_there(request, call)
    context_of(request).command_s = result.duration_s
    request.app.state.usage_reporter.executed(time.perf_counter() - began - result.duration_s)
    return _answer(result, body.encoding, share)


async def _while_there(request: Request, work: Awaitable[RunResult]) -> RunResult:
    """The result of `work`, which is cancelled when the client goes away. A task watches for that only after
    `_WATCH_AFTER_S`."""
    task = asyncio.current_task()
    assert task is not None
    watching: list[asyncio.Task[None]] = []

    async def watch() -> None:
        await gone(request.receive)
        task.cancel("the client has gone")

    timer = asyncio.get_running_loop().call_later(
        _WATCH_AFTER_S, lambda: watching.append(asyncio.ensure_future(watch()))
    )
    try:
        return await work
    finally:
        timer.cancel()
        for watcher in watching:
            watcher.cancel()


def _answer(result: RunResult, encoding: str, share: Share) -> Response:
    head: dict[str, Any] = {
        "returncode": result.exit,
        "timed_out": result.timed_out,
        "truncated": result.truncated,
        "duration": result.duration_s,
    }
    size = len(result.stdout) + len(result.stderr)
    if size > _AT_ONCE:
        headers = {"Cache-Control": "no-store"}
        long = _Long(head, result, encoding, share)
        return StreamingBody(long, headers=headers, media_type="application/json", stall_s=_STALL_S, holds=size)
    for name, data in (("stdout", result.stdout), ("stderr", result.stderr)):
        head[name] = data.decode("utf-8", "replace") if encoding == "utf-8" else base64.b64encode(data).decode()
    share.release()
    return Json(head)


class _Long:
    """A long answer in pieces. Its share of the memory for outputs is released with it."""

    def __init__(self, head: dict[str, Any], result: RunResult, encoding: str, share: Share) -> None:
        self._head = head
        self._outputs = {"stdout": result.stdout, "stderr": result.stderr}
        self._encoding = encoding
        self._share = share

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield to_json(self._head)[:-1]
        for name, data in self._outputs.items():
            yield f',"{name}":"'.encode()
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            view = memoryview(data)
            for at in range(0, len(data), _PIECE):
                piece = view[at : at + _PIECE]
                if self._encoding == "base64":
                    yield base64.b64encode(piece)
                else:
                    yield to_json(decoder.decode(piece, at + _PIECE >= len(data)))[1:-1]
            yield b'"'
        yield b"}"

    async def aclose(self) -> None:
        """Releases the output."""
        self._outputs.clear()
        self._share.release()
