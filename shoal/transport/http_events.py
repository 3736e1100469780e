"""Events from the API: those that are there, and as a stream (SSE) those to come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp

from shoal.model.access import SandboxEvent
from shoal.model.errors import Internal, Unavailable
from shoal.transport import http_json
from shoal.transport.http_calls import Broken, HttpCalls, translate

MAX_EVENTS = 1000
_MAX_LINE = 1 << 20


async def events_after(calls: HttpCalls, path: str, query: dict[str, Any]) -> list[SandboxEvent]:
    """The events that are there."""
    data = await calls.json("GET", path, query={**query, "follow": "false"})
    return http_json.many("events", http_json.event, data)


async def next_events(calls: HttpCalls, path: str, query: dict[str, Any], wait_s: float) -> list[SandboxEvent]:
    """The first that come, with all that come along with them; none after `wait_s`."""
    found: list[SandboxEvent] = []
    try:
        async with calls.response(
            "GET", path, query=query, headers={"Accept": "text/event-stream"}, takes_s=None
        ) as response:
            messages = _messages(response.content)
            try:
                async with asyncio.timeout(wait_s) as patience:
                    async for data in messages:
                        found.append(http_json.decoded(lambda text: http_json.event(json.loads(text)), data))
                        # What happened together was written together: it is there by now.
                        patience.reschedule(asyncio.get_running_loop().time() + 0.01)
                        if len(found) >= MAX_EVENTS:
                            break
            except TimeoutError:
                pass
            except (aiohttp.ClientError, OSError) as error:
                raise translate(error, calls.server, "GET") from None
            finally:
                await messages.aclose()
    except Broken as error:
        if not found:
            raise Unavailable(error.message) from None
    return found


async def _messages(lines: aiohttp.StreamReader) -> AsyncGenerator[str, None]:
    """The data of each message; comments, which only show that the server lives, are passed over."""
    data: list[str] = []
    pending = b""
    async for piece in lines.iter_any():
        *whole, pending = (pending + piece).split(b"\n")
        if len(pending) > _MAX_LINE:
            raise Internal(f"the API sent an event of more than {_MAX_LINE} bytes")
        for line in whole:
            text = line.decode("utf-8", "replace").rstrip("\r")
            if text.startswith("data:"):
                data.append(text[5:].removeprefix(" "))
            elif not text and data:
                yield "\n".join(data)
                data = []
