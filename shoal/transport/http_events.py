"""Events from the API: past ones as JSON, and those to come as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, NamedTuple

import aiohttp

from shoal.model.access import SandboxEvent
from shoal.model.errors import FailedPrecondition, Internal, Unavailable
from shoal.transport.http_calls import HttpCalls
from shoal.transport.http_errors import Broken, translate
from shoal.transport.http_verbs import decoded, decoder

MAX_EVENTS = 1000
_MAX_LINE = 1 << 20
_FIRST_S = 10.0
_TOGETHER_S = 0.01
"""How long the next event is waited for after one came: events of one change arrive together."""


class _Message(NamedTuple):
    id: str
    data: str


async def events_after(calls: HttpCalls, path: str, query: dict[str, Any]) -> list[SandboxEvent]:
    """The events that have happened."""
    data = await calls.json("GET", path, query={**query, "follow": "false"})
    return decoded(lambda answer: [_event(each) for each in answer["events"]], data)


async def next_events(calls: HttpCalls, path: str, query: dict[str, Any], wait_s: float) -> list[SandboxEvent]:
    """The next events, as far as they arrive together; none after `wait_s`."""
    found: list[SandboxEvent] = []
    try:
        async with asyncio.timeout(wait_s) as patience, aclosing(_messages(calls, path, query)) as messages:
            async for message in messages:
                if message.data:
                    found.append(decoded(lambda text: _event(json.loads(text)), message.data))
                    patience.reschedule(asyncio.get_running_loop().time() + _TOGETHER_S)
                if len(found) >= MAX_EVENTS:
                    break
            if not found:  # the stream has ended with its sandbox: nothing more will come
                await asyncio.sleep(wait_s)
    except TimeoutError:
        pass
    except Unavailable:
        if not found:
            raise
    return found


async def newest_event(calls: HttpCalls, path: str) -> int:
    """The id of the newest event: a stream of those to come begins with it."""
    try:
        async with asyncio.timeout(_FIRST_S), aclosing(_messages(calls, path, {})) as messages:
            async for message in messages:
                return decoded(int, message.id)
    except TimeoutError:
        raise Unavailable(f"{calls.server.url} did not begin to tell of events within {_FIRST_S:g} s") from None
    raise FailedPrecondition(f"{calls.server.url} tells of no events: it is of another version", state="version")


def _event(data: Any) -> SandboxEvent:
    event: SandboxEvent = decoder(SandboxEvent)(data)
    return event


async def _messages(calls: HttpCalls, path: str, query: dict[str, Any]) -> AsyncGenerator[_Message, None]:
    """The messages of a stream, without comments."""
    own = {"Accept": "text/event-stream"}
    try:
        async with calls.response("GET", path, query=query, headers=own, takes_s=None) as response:
            number, data, pending = "", "", b""
            async for piece in response.content.iter_any():
                *lines, pending = (pending + piece).split(b"\n")
                if len(pending) > _MAX_LINE:
                    raise Internal(f"the API sent an event of more than {_MAX_LINE} bytes")
                for line in lines:
                    name, _, value = line.decode("utf-8", "replace").rstrip("\r").partition(":")
                    if name == "data":
                        data += value.removeprefix(" ")
                    elif name == "id":
                        number = value.strip()
                    elif not name and not value and (data or number):
                        yield _Message(number, data)
                        data = ""
    except Broken as error:
        raise error.to_shoal() from None
    except (aiohttp.ClientError, OSError) as error:
        raise translate(error, calls.server, "GET").to_shoal() from None
