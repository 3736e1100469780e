"""Work that goes on though the client that asked for it may have left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import HTTPConnection

T = TypeVar("T")


async def seen_through(connection: HTTPConnection, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. Where this call is cancelled, for its client has gone, the work is done to its end all the same."""
    makes: set[asyncio.Task[Any]] = connection.app.state.makes
    task = asyncio.get_running_loop().create_task(work)
    makes.add(task)
    task.add_done_callback(lambda done: _done(makes, done))
    return await asyncio.shield(task)


def _done(makes: set[asyncio.Task[Any]], task: asyncio.Task[Any]) -> None:
    makes.discard(task)
    if not task.cancelled():
        task.exception()  # whoever waits has it; where nobody does any more, the key gives it again
