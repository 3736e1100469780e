"""A WebSocket and a byte stream into a sandbox, tied together: what comes from one goes to the other, no faster than it
is taken."""

from __future__ import annotations

import asyncio

from starlette.websockets import WebSocket

from shoal.cluster.api.processes.websockets import MAX_PIECE, STALL_S, parse, receive, send_bytes, send_json
from shoal.cluster.api.request.streaming import first_to_end
from shoal.cluster.api.schema.data import HalfClose
from shoal.model.errors import InvalidRequest, Unavailable
from shoal.wire.bytestream import ByteStream


async def splice(websocket: WebSocket, stream: ByteStream, *, half_close: bool) -> None:
    """Returns when either side is done. `half_close`: each direction ends for itself, by a text message `{"eof":
    true}`; it is done when both have ended. Raises `Unavailable` where the sandbox's side breaks or takes nothing for
    `STALL_S`, `WebSocketDisconnect` where the client's breaks."""
    ended = [asyncio.Event(), asyncio.Event()]

    async def upwards() -> None:
        while True:
            message = await receive(websocket, MAX_PIECE)
            if isinstance(message, bytes):
                if ended[0].is_set():
                    raise InvalidRequest("message: bytes after the end of the input", field="message")
                await _write(stream, message)
            elif half_close:
                parse(HalfClose, message)
                await stream.write_eof()
                ended[0].set()
            else:
                raise InvalidRequest("message: text has no place here; send binary messages", field="message")

    async def downwards() -> None:
        while data := await stream.read():
            await send_bytes(websocket, data)
        if half_close:
            await send_json(websocket, {"eof": True})
            ended[1].set()
            await ended[0].wait()

    await first_to_end(upwards(), downwards())


async def _write(stream: ByteStream, data: bytes) -> None:
    try:
        async with asyncio.timeout(STALL_S):
            await stream.write(data)
    except TimeoutError:
        raise Unavailable(f"the sandbox's side took nothing for {STALL_S:g} s") from None
