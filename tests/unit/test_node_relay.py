"""The relay as the node holds it: each request gets its own answer, and none is left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from shoal.actors.node.relay import Relay
from shoal.images.binaries import agent_binary
from shoal.model import grants
from shoal.model.errors import Unavailable
from shoal.model.ids import new_container_key
from tests.processes import relay_pid

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

WITHIN_S = 20.0
"""How long a test waits for what is to happen: only one that fails waits so long."""


@pytest.fixture
def top(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    made = Path(
        tempfile.mkdtemp(prefix="shoal-")
    )  # a socket's path has 107 bytes at most: not below pytest's long directories
    monkeypatch.setenv("SHOAL_RUN_DIR", str(made))
    yield made
    shutil.rmtree(made)


def relay(top: Path, *, tls: bool = False) -> Relay:
    return Relay(agent_binary(), top / "c", "127.0.0.1", top / "port", top / "log", b"s" * 32, tls=tls)


async def test_it_is_watched_on_though_what_follows_a_connection_shows_a_defect(top: Path) -> None:
    tries = 0
    connected = asyncio.Event()

    async def defect_at_first() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise KeyError("a defect")
        connected.set()

    made = relay(top)
    made.on_connected = defect_at_first
    await made.open()
    try:
        await asyncio.wait_for(connected.wait(), WITHIN_S)
    finally:
        await made.close()


async def test_a_request_that_is_given_up_keeps_its_answer_to_itself(top: Path) -> None:
    connected = asyncio.Event()

    async def note() -> None:
        connected.set()

    made = relay(top)
    made.on_connected = note
    await made.open()
    try:
        await asyncio.wait_for(connected.wait(), WITHIN_S)
        connected.clear()
        given_up = asyncio.create_task(made.remove(new_container_key()))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        with suppress(Unavailable):  # until the watcher has connected anew
            assert (await made.ask({"op": "info"}))["address"] == made.address
        await asyncio.wait_for(connected.wait(), WITHIN_S)
        assert (await made.ask({"op": "info"}))["address"] == made.address
    finally:
        await made.close()


async def test_clients_know_a_relay_that_was_adopted_or_restarted(top: Path) -> None:
    first, again = relay(top, tls=True), relay(top)
    await first.open()
    try:
        endpoint = first.endpoint
        assert endpoint == grants.endpoint(first.address, first.fingerprint) != first.address
        await first.detach()
        await again.open()  # whatever is wanted of one that is started: this one runs already
        assert again.endpoint == endpoint
    finally:
        await again.close()
    await first.open()
    try:
        assert first.fingerprint in endpoint
    finally:
        await first.close()


async def test_closing_stops_the_relay_whatever_was_just_asked(top: Path) -> None:
    for _ in range(10):
        made = relay(top)
        await made.open()
        assert await asyncio.to_thread(relay_pid) is not None
        asked = asyncio.create_task(made.exposed())
        await asyncio.sleep(0)
        asked.cancel()
        await made.close()
        await asyncio.wait([asked])
        assert await asyncio.to_thread(relay_pid) is None
    assert os.listdir(top / "c") == []
