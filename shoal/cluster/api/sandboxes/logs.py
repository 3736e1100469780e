"""The output of a sandbox's own command: from the sandbox while it lives, from the node's log after its end."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from shoal.client.retrying_agent import RetryingAgent
from shoal.cluster.api.access.auth import needs
from shoal.cluster.api.processes.output import OFFSET, OutputReader, output_response
from shoal.cluster.api.request.context import Cluster
from shoal.cluster.api.request.route import new_router
from shoal.cluster.api.request.streaming import OCTETS
from shoal.cluster.api.schema.data import FD, Offset, Stream
from shoal.model.access import Scope
from shoal.model.errors import ProcessNotFound
from shoal.model.ids import MAIN_PROCESS

router = new_router("logs", dependencies=[needs(Scope.READ)])


@router.get(
    "/v1/sandboxes/{sandbox_id}/logs",
    response_class=Response,
    responses={200: {"content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}}}},
)
async def read_logs(
    sandbox_id: str,
    request: Request,
    transport: Cluster,
    stream: Annotated[Stream, Query()] = "stdout",
    offset: Annotated[Offset, Query()] = 0,
    follow: Annotated[bool, Query(description="To the end of the stream, past the sandbox's own end")] = False,
) -> Response:
    """The output of its own command from an offset on; `X-Shoal-Offset` says where it begins.

    The newest 1 MiB is kept. The command does not wait for readers: one that follows and falls that far behind is cut
    off, comes back with its offset, and learns how much it missed. A sandbox without a command has no output.
    """
    source = OutputReader(RetryingAgent(transport, sandbox_id), MAIN_PROCESS, FD[stream], offset, peek=True)
    try:
        return await output_response(source, request, follow=follow)
    except ProcessNotFound:
        return Response(headers={OFFSET: "0"}, media_type=OCTETS)
