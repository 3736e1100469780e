"""The HTTP transport's connections to agents, ended at unkind moments."""

from __future__ import annotations

import asyncio
import gc

import pytest

from shoal.model import verbs
from shoal.transport.http import HttpTransport
from shoal.transport.http_socket import open_connection
from tests.contract.api.lab import Lab, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_connection_that_is_aborted_at_once_leaves_nothing(place: Lab, turns: int) -> None:
    transport = HttpTransport(place.server.url, place.token)
    await transport.ask(verbs.get, place.sandbox_id)
    before = asyncio.all_tasks()
    connection = await open_connection(transport.calls, f"/v1/sandboxes/{place.sandbox_id}/connect")
    for _ in range(turns):
        await asyncio.sleep(0)
    connection.abort()
    async with asyncio.timeout(5):
        await connection.wait_closed()

    async def gone() -> bool:
        return asyncio.all_tasks() <= before

    await until(gone, "its tasks have ended")
    await transport.close()


async def test_a_connection_that_is_closed_as_its_event_loop_ends_leaves_nothing(place: Lab) -> None:
    async def body(turns: int) -> None:
        transport = HttpTransport(place.server.url, place.token)
        connection = await open_connection(transport.calls, f"/v1/sandboxes/{place.sandbox_id}/connect")
        await asyncio.sleep(0.02)  # until its tasks wait
        connection.close()
        for _ in range(turns):
            await asyncio.sleep(0)

    for turns in (0, 1, 2, 3) * 5:
        await asyncio.to_thread(asyncio.run, body(turns))
        gc.collect()  # aiohttp warns then of what was not closed, and a warning is an error here
