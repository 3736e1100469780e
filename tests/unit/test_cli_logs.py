"""`shoal logs` without `--follow`: all that there is, and no more."""

from __future__ import annotations

import asyncio

import pytest

from shoal.cli.sandboxes import _logs
from shoal.client.cluster import Client
from shoal.client.sandbox import Sandbox
from shoal.wire.agent import Agent
from tests.fakes.cluster import FakeTransport

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


class FarCluster(FakeTransport):
    """The agents of which take their time to be reached."""

    async def agent(self, sandbox_id: str) -> Agent:
        await asyncio.sleep(0.7)
        return await super().agent(sandbox_id)


async def test_an_agent_that_is_far_away_is_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    client = Client(FarCluster())
    async with await Sandbox.create.aio("cat", client=client) as sandbox:
        await sandbox.stdin.write.aio("hello\n")
        await _logs(client, sandbox.id, follow=False)
    assert capfd.readouterr().out == "hello\n"


async def test_of_a_command_that_has_written_nothing_there_is_none(capfd: pytest.CaptureFixture[str]) -> None:
    client = Client(FakeTransport())
    async with await Sandbox.create.aio("cat", client=client) as sandbox:
        async with asyncio.timeout(20):
            await _logs(client, sandbox.id, follow=False)
    assert capfd.readouterr() == ("", "")


async def test_it_ends_though_the_command_never_pauses(capfd: pytest.CaptureFixture[str]) -> None:
    client = Client(FakeTransport())
    async with await Sandbox.create.aio("cat", client=client) as sandbox:

        async def write_on() -> None:
            while True:
                await sandbox.stdin.write.aio("more\n")
                await asyncio.sleep(0.001)

        await sandbox.stdin.write.aio("first\n")
        writing = asyncio.create_task(write_on())
        try:
            async with asyncio.timeout(20):
                await _logs(client, sandbox.id, follow=False)
        finally:
            writing.cancel()
            await asyncio.wait([writing])
    assert capfd.readouterr().out.startswith("first\n")
