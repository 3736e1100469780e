"""What the WebSockets of the data half have in common: messages that are bounded, errors as messages, and ends.

A client is read from only when there is room for what it says, and sent to only as it takes: neither side can fill this
process.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from shoal.cluster.api.access.auth import authenticate
from shoal.cluster.api.request.problems import document
from shoal.cluster.api.request.streaming import slow_clients
from shoal.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    ShoalError,
    Unauthenticated,
    Unavailable,
)

MAX_PIECE = 256 << 10
"""Bytes of one binary message, either way (less the byte that names its stream)."""

STALL_S = 100.0
"""Seconds that a sandbox's side may take nothing of what its client says.

The gateway gives up after 120, without a word.
"""

NORMAL = 1000
REFUSED = 1008
FAILED = 1011
REVOKED = 4401

_THE_CLIENTS = (AlreadyExists, FailedPrecondition, InvalidRequest, NotFound, PermissionDenied)
_CLOSE_S = 5.0
_RECHECK_S = 30.0

M = TypeVar("M", bound=BaseModel)


async def receive(websocket: WebSocket, limit: int) -> str | bytes:
    """The next message, text or binary.

    Raises `WebSocketDisconnect`, and `InvalidRequest` for one of more than `limit` bytes.
    """
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1006))
    data: str | bytes | None = message.get("bytes")
    if data is None:
        data = str(message["text"])
    if len(data) > limit:
        raise InvalidRequest(
            f"message: {len(data)} bytes are too many, {limit} are possible: send several", field="message"
        )
    return data


async def send_bytes(websocket: WebSocket, data: bytes) -> None:
    """Sends a binary message; returns once the client has taken most of it."""
    with slow_clients.waiting(len(data)):
        await websocket.send_bytes(data)


async def send_json(websocket: WebSocket, message: dict[str, Any]) -> None:
    """Sends a text message."""
    text = json.dumps(message, separators=(",", ":"))
    with slow_clients.waiting(len(text)):
        await websocket.send_text(text)


def parse(model: type[M], text: str) -> M:
    """A text message as a model; `InvalidRequest` names the member at fault."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "message"
        raise InvalidRequest(f"{field}: {first['msg']}", field=field) from None


async def fail(websocket: WebSocket, error: ShoalError, request_id: str | None) -> None:
    """Tells a client of an error, and closes: 1008 where it is the client's, 1011 otherwise."""
    try:
        async with asyncio.timeout(_CLOSE_S):
            await send_json(websocket, {"type": "error", "problem": document(error, request_id)})
    except (TimeoutError, WebSocketDisconnect, RuntimeError, QuotaExceeded):
        pass  # it has gone, or reads nothing any more
    await close(websocket, refusal(error), error.code)


def refusal(error: ShoalError) -> int:
    """The code that a socket is closed with for an error."""
    if isinstance(error, Unauthenticated):
        return REVOKED
    return REFUSED if isinstance(error, _THE_CLIENTS) else FAILED


async def close(websocket: WebSocket, code: int, reason: str = "") -> None:
    """Closes, where it is open. A client that takes nothing any more is not waited for."""
    if websocket.application_state is not WebSocketState.CONNECTED:
        return
    try:
        async with asyncio.timeout(_CLOSE_S):
            await websocket.close(code, reason)
    except (TimeoutError, WebSocketDisconnect, RuntimeError):
        pass  # it has gone meanwhile


async def guard(connection: HTTPConnection) -> None:
    """Looks again and again whether the caller's token still holds; raises `Unauthenticated` when it does not."""
    while True:
        await asyncio.sleep(_RECHECK_S)
        try:
            await authenticate(connection)
        except Unavailable:
            pass  # nobody knows at the moment: whoever is in stays in
