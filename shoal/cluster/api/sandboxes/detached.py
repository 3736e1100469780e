"""Work that goes on even if its client has left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import HTTPConnection

T = TypeVar("T")


async def seen_through(connection: HTTPConnection, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. If this call is cancelled, because its client has gone, the work goes on to its end."""
    makes: set[asyncio.Task[Any]] = connection.app.state.makes
    task = asyncio.get_running_loop().create_task(work)
    makes.add(task)
    task.add_done_callback(lambda done: _done(makes, done))
    return await asyncio.shield(task)


def _done(makes: set[asyncio.Task[Any]], task: asyncio.Task[Any]) -> None:
    makes.discard(task)
    if not task.cancelled():
        task.exception()  # the caller gets it; if it has gone, the same key gives it again
