"""Raw bytes into a sandbox over WebSockets: to its agent (what Shoal's own client speaks), and to its ports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.websockets import WebSocket, WebSocketDisconnect

from shoal.cluster.api.access.audit import audited
from shoal.cluster.api.access.auth import Runner, subprotocol
from shoal.cluster.api.processes.splice import splice
from shoal.cluster.api.processes.websockets import NORMAL, close, guard, refusal, send_json
from shoal.cluster.api.request.context import Cluster
from shoal.cluster.api.request.problems import document
from shoal.cluster.api.request.route import new_router
from shoal.cluster.api.request.streaming import first_to_end
from shoal.model.access import Caller
from shoal.model.errors import InvalidRequest, ShoalError
from shoal.transport.contract import Transport
from shoal.wire.bytestream import ByteStream

router = new_router("connections")


@router.websocket("/v1/sandboxes/{sandbox_id}/connect", dependencies=[audited("connect")])
async def connect(websocket: WebSocket, sandbox_id: str, transport: Cluster, caller: Runner) -> None:
    await _tie(websocket, lambda: transport.channel(sandbox_id), caller, half_close=False)


@router.websocket("/v1/sandboxes/{sandbox_id}/ports/{port}", dependencies=[audited("connect.port")])
async def port(websocket: WebSocket, sandbox_id: str, port: str, transport: Cluster, caller: Runner) -> None:
    await _tie(websocket, lambda: _dial(transport, sandbox_id, port), caller, half_close=True)


async def _dial(transport: Transport, sandbox_id: str, port: str) -> ByteStream:
    if not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise InvalidRequest(f"port must be 1 to 65535, not {port!r:.20}", field="port")
    return await transport.dial(sandbox_id, int(port))


async def _tie(
    websocket: WebSocket, open_stream: Callable[[], Awaitable[ByteStream]], caller: Caller, *, half_close: bool
) -> None:
    await websocket.accept(subprotocol(websocket))
    try:
        stream = await open_stream()
    except ShoalError as error:
        await send_json(websocket, {"error": document(error, caller.request_id)})
        await close(websocket, refusal(error), error.code)
        return
    try:
        await send_json(websocket, {"ok": True})
        await first_to_end(splice(websocket, stream, half_close=half_close), guard(websocket))
        await close(websocket, NORMAL)
    except WebSocketDisconnect:
        pass
    except ShoalError as error:
        await close(websocket, refusal(error), error.code)
    finally:
        await stream.close()
