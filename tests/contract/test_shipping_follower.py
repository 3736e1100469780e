"""The output of a command's real agent is taken as it comes, over a relay that is killed; what is lost is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.actors.node.shipping.follower import Follower
from shoal.actors.node.shipping.lines import Names
from shoal.actors.node.shipping.shipper import Shipper
from shoal.actors.node.shipping.sinks import FileSink
from shoal.actors.node.shipping.spool import Spool
from shoal.model.ids import MAIN_PROCESS
from shoal.wire.agent import Agent, Start
from tests.contract.relay_fixture import AgentLab, agent_lab

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

BOX = "sb-test"


@pytest.fixture
async def sandbox() -> AsyncIterator[AgentLab]:
    async with agent_lab() as made:
        yield made


@pytest.fixture
async def shipper(tmp_path: Path) -> AsyncIterator[Shipper]:
    made = Shipper(Spool(tmp_path / "s.db", 64 << 20), FileSink(tmp_path / "out"), Names("cluster", "host"))
    yield made
    made.spool.close()


def entries(shipper: Shipper) -> list[dict[str, Any]]:
    return [json.loads(body) for _, body in shipper.spool.first(1 << 20, 1 << 30)]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  # threads tell nobody
            await asyncio.sleep(0.02)


async def test_lines_come_while_a_relay_is_killed_and_nobody_uses_the_sandbox(
    sandbox: AgentLab, shipper: Shipper, tmp_path: Path
) -> None:
    async def connect(sandbox_id: str) -> Agent:
        return await sandbox.connect()

    follower = Follower(shipper, connect)
    gate = tmp_path / "go"
    script = f"echo one; echo two >&2; printf rest; while [ ! -e {gate} ]; do sleep 0.02; done; echo; echo end"
    async with sandbox.agent() as agent:
        await agent.exec(Start(MAIN_PROCESS, ("sh", "-c", script)), tail=True)
        await shipper.begin(BOX)
        follower.follow(BOX)
        follower.follow(BOX)
        await until(lambda: len(entries(shipper)) == 3)  # the third is what has no end yet
        idle = asyncio.create_task(agent.idle(0.3))  # that somebody follows is no use
        await asyncio.wait_for(idle, 10)
    await sandbox.relay.kill()
    await sandbox.relay.start()
    gate.touch()
    await until(lambda: len(entries(shipper)) == 5)
    await follower.close()
    found = {(each["stream"], each["offset"]): each["text"] for each in entries(shipper)}
    assert found == {
        ("stdout", 0): "one",
        ("stderr", 0): "two",
        ("stdout", 4): "rest",
        ("stdout", 8): "",
        ("stdout", 9): "end",
    }


async def test_a_command_that_outruns_the_node_is_not_slowed_and_what_is_lost_is_told(
    sandbox: AgentLab, shipper: Shipper
) -> None:
    async def connect(sandbox_id: str) -> Agent:
        return await sandbox.connect()

    follower = Follower(shipper, connect)
    size = 4 << 20
    async with sandbox.agent() as agent:
        script = f"yes 0123456789abcde | head -c {size}"
        await agent.exec(Start(MAIN_PROCESS, ("sh", "-c", script)), tail=True)
        await asyncio.wait_for(agent.wait(MAIN_PROCESS), 20)  # before anybody follows
        await shipper.begin(BOX)
        follower.follow(BOX)
        await until(lambda: shipper.spool.position(BOX, 1) == size)
    await follower.close()
    found = entries(shipper)
    taken = sum(len(each["text"]) + 1 for each in found if each["kind"] == "output")
    assert found[0]["kind"] == "gap"
    # A line that the loss has cut begins in its middle; the one that it ends with has no end.
    assert size - found[0]["bytes"] <= taken <= size - found[0]["bytes"] + 1
    assert shipper.lost_bytes == found[0]["bytes"] > 0
