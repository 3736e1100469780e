"""The same create over HTTP thousands of times, as clients on a bad network send it: one sandbox for each key."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence

import aiohttp
import pytest

from shoal.client import config_file
from shoal.client.sandbox import Sandbox
from shoal.transport.http_server import normal_url
from tests.cluster import Cluster

pytestmark = [pytest.mark.anyio, pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(400)]

MANY = 10_000
OF_ONE_KEY = 2_000
AT_ONCE = 32
KEYS = 100
LIFE_S = 900
"""Of a sandbox: longer than any of this takes, on a slow machine too."""


@pytest.fixture
def tag(cluster: Cluster) -> Iterator[str]:
    """A tag of this test's own; what has it is ended afterwards."""
    name = f"idem-{time.time_ns():x}"
    yield name
    for sandbox in Sandbox.list(tags={"test": name}, client=cluster.client):
        sandbox.terminate()


async def replay(cluster: Cluster, body: dict[str, object], keys: Sequence[str]) -> tuple[list[str], float]:
    """One create for each of `keys`, `AT_ONCE` at a time. Gives the ids in the same order, and creates per second."""
    url = normal_url(cluster.file.api_url)
    headers = {"Authorization": f"Bearer {config_file.read().servers[url].token}"}
    ids = [""] * len(keys)
    waiting = iter(enumerate(keys))
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=120)) as session:

        async def send() -> None:
            for place, key in waiting:
                at = f"{url}/v1/sandboxes?wait=false"
                async with session.post(at, json=body, headers={"Idempotency-Key": key}) as answer:
                    assert answer.status == 202, await answer.text()
                    ids[place] = (await answer.json())["id"]

        began = time.monotonic()
        await asyncio.gather(*(send() for _ in range(AT_ONCE)))
        return ids, len(keys) / (time.monotonic() - began)


async def test_one_key_gives_one_sandbox(cluster: Cluster, tag: str) -> None:
    ids, rate = await replay(cluster, {"tags": {"test": tag}, "timeout": LIFE_S}, [tag] * OF_ONE_KEY)
    print(f"{rate:.0f} replays of one key a second")
    assert len(set(ids)) == 1
    assert await _living(cluster, tag) == set(ids)


async def test_a_hundred_keys_give_a_hundred(cluster: Cluster, tag: str) -> None:
    """Each asks for all cores, so most wait for room: the test is about their number, not their start."""
    cores = os.cpu_count()
    keys = [f"{tag}-{number % KEYS}" for number in range(MANY)]
    ids, rate = await replay(cluster, {"tags": {"test": tag}, "cpu": cores, "timeout": LIFE_S}, keys)
    print(f"{rate:.0f} replays of {KEYS} keys a second")
    by_key: dict[str, set[str]] = {}
    for key, sandbox_id in zip(keys, ids, strict=True):
        by_key.setdefault(key, set()).add(sandbox_id)
    assert {len(found) for found in by_key.values()} == {1}
    assert len(set(ids)) == KEYS
    assert await _living(cluster, tag) == set(ids)


async def _living(cluster: Cluster, tag: str) -> set[str]:
    return {sandbox.id for sandbox in await Sandbox.list.aio(tags={"test": tag}, client=cluster.client)}
