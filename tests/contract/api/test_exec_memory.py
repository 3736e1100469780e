"""A burst of execs with long outputs: the replica's memory stays within its bound, and who asks for little does not
notice.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from shoal.cluster.api.processes import exec as execs
from tests.contract.api.lab import Lab, lab, until
from tests.contract.api.test_hostile import MIB, rss

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

CLIENTS = 64
ASKED = 32 * MIB
MOST = 128 * MIB
HELD_WITH_HOLES = 4 * MOST
"""What outputs may add to the process: buffers that grow, and holes in the heap of a process that has run a thousand
tests, come to about twice what is held. Without the bound it is all of `CLIENTS * ASKED`, four times this.
"""


@dataclass
class Peak:
    """The most memory that this process held."""

    bytes: int = 0

    async def watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, rss())
            await asyncio.sleep(0.01)


@pytest.fixture
async def narrow(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lab]:
    """A lab whose outputs may hold 128 MiB."""
    monkeypatch.setattr(execs, "MOST_HELD", MOST)
    async with lab("sleep", "1000") as made:
        yield made


@asynccontextmanager
async def gate(place: Lab) -> AsyncIterator[int]:
    """A pipe `gate` in the sandbox's directory: each line written there lets one process through."""
    path = place.directory / "gate"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


async def test_a_burst_of_long_outputs_stays_within_its_memory(narrow: Lab) -> None:
    refused: list[dict[str, Any]] = []
    complete = 0

    async def ask() -> None:
        nonlocal complete
        body = {
            "command": f"head -c {ASKED} /dev/zero; read line < {narrow.directory}/gate",
            "max_output": ASKED,
            "encoding": "base64",
        }
        async with narrow.http.post(f"{narrow.at}/exec", json=body) as answer:
            if answer.status == 503:
                assert "Retry-After" not in answer.headers
                refused.append(await answer.json(content_type=None))
                return
            assert answer.status == 200
            size = 0
            async for piece in answer.content.iter_any():
                size += len(piece)
            assert size > ASKED * 4 // 3
            complete += 1

    async def all_but_few() -> bool:
        return len(refused) >= CLIENTS - MOST // ASKED

    budget = narrow.server.app.state.outputs
    peak = Peak()
    before = rss()
    async with gate(narrow) as fd:
        watching = asyncio.ensure_future(peak.watch())
        asking = [asyncio.ensure_future(ask()) for _ in range(CLIENTS)]
        try:
            await until(all_but_few, "those for whom there is no room are refused", 60)
            assert (await narrow.exec("echo well"))["stdout"] == "well\n"
            middling = await narrow.exec(f"head -c {MIB} /dev/zero | tr '\\0' x")
            assert len(middling["stdout"]) == MIB
        finally:
            os.write(fd, b"\n" * CLIENTS)
            await asyncio.gather(*asking)
            watching.cancel()
    assert 1 <= complete <= MOST // ASKED
    assert {(problem["code"], problem["retryable"]) for problem in refused} == {("unavailable", False)}
    assert peak.bytes - before < HELD_WITH_HOLES

    async def nothing_held() -> bool:
        return bool(budget.held == 0)

    await until(nothing_held, "the memory for outputs is free")
    assert (await narrow.open_streams()) == 0


async def test_a_client_that_leaves_frees_the_memory_for_its_output(narrow: Lab) -> None:
    budget = narrow.server.app.state.outputs
    async with gate(narrow) as fd:
        body = {"command": f"head -c {ASKED} /dev/zero; read line < {narrow.directory}/gate", "max_output": ASKED}
        asking = asyncio.ensure_future(narrow.http.post(f"{narrow.at}/exec", json=body))

        async def all_there() -> bool:
            return bool(budget.held == ASKED)

        await until(all_there, "its output is in memory")
        asking.cancel()
        await asyncio.wait([asking])

        async def nothing_held() -> bool:
            return bool(budget.held == 0)

        await until(nothing_held, "the memory for its output is free")
        os.write(fd, b"\n")
