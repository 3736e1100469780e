"""The relay is killed in the middle, and nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import pytest

from shoal.model import errors, ids
from shoal.wire.agent import Agent, Connection, Start
from tests.contract.relay_fixture import AgentLab, agent_lab

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

R = TypeVar("R")


@pytest.fixture
async def sandbox() -> AsyncIterator[AgentLab]:
    async with agent_lab() as made:
        yield made


class Redialling:
    """What a caller makes of `Unavailable`: dial again, make the same call again."""

    def __init__(self, sandbox: AgentLab) -> None:
        self._sandbox = sandbox
        self._agent: Agent | None = None
        self._dialling = asyncio.Lock()
        self.dials = 0

    async def agent(self) -> Agent:
        async with self._dialling:  # many callers share one connection, and no other is left open
            while self._agent is None or self._agent.connection.closed:
                try:
                    self._agent = await self._sandbox.connect()
                    self.dials += 1
                except errors.Unavailable:
                    await asyncio.sleep(0.02)
            return self._agent

    async def call(self, make: Callable[[Agent], Awaitable[R]]) -> R:
        while True:
            try:
                return await make(await self.agent())
            except errors.Unavailable:
                continue

    async def close(self) -> None:
        if self._agent is not None:
            self._agent.connection.close()
            await self._agent.connection.wait_closed()


@pytest.fixture
async def redialling(sandbox: AgentLab) -> AsyncIterator[Redialling]:
    made = Redialling(sandbox)
    yield made
    await made.close()


async def restarts(sandbox: AgentLab, redialling: Redialling, count: int, pause_s: float) -> None:
    """Each is noticed before the next: somebody has to use the connection until this returns."""
    while redialling.dials == 0:  # noqa: ASYNC110  # it tells nobody
        await asyncio.sleep(0.01)
    for _ in range(count):
        await asyncio.sleep(pause_s)
        dials = redialling.dials
        await sandbox.relay.kill()
        await asyncio.sleep(0.05)
        await sandbox.relay.start()
        while redialling.dials == dials:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.01)


async def test_output_goes_on_where_it_was(sandbox: AgentLab, redialling: Redialling) -> None:
    enough = sandbox.directory / "enough"
    start = Start(
        ids.new_process_id(),
        [
            "/bin/sh",
            "-c",
            f"i=0; while [ ! -e {enough} ]; do seq $((i*10000)) $((i*10000+9999)); i=$((i+1)); sleep 0.03; done",
        ],
    )
    await redialling.call(lambda agent: agent.exec(start))
    killer = asyncio.create_task(restarts(sandbox, redialling, 4, 0.3))
    killer.add_done_callback(lambda _: enough.touch())
    data = bytearray()
    ended = False
    while not ended:
        agent = await redialling.agent()
        output = agent.output(start.id, 1, len(data))
        try:
            async for chunk in output:
                data += chunk
            ended = True
        except errors.Unavailable:
            assert output.offset == len(data)
        assert output.gaps == []
    await killer
    assert redialling.dials >= 5
    assert bytes(data) == b"".join(b"%d\n" % number for number in range(data.count(b"\n")))
    assert data.count(b"\n") % 10_000 == 0
    assert (await redialling.call(lambda agent: agent.wait(start.id))).exit == 0


async def test_input_goes_on_where_it_was(sandbox: AgentLab, redialling: Redialling) -> None:
    target = sandbox.directory / "copy"
    start = Start(ids.new_process_id(), ["/bin/sh", "-c", f"cat > {target}"])
    await redialling.call(lambda agent: agent.exec(start))
    ending = asyncio.create_task(redialling.call(lambda agent: agent.wait(start.id)))
    killer = asyncio.create_task(restarts(sandbox, redialling, 3, 0.3))
    data = b"".join(b"%d\n" % number for number in range(500_000))
    known = 0  # all before this the other side has
    ended = False
    while not ended:
        try:
            stdin = await (await redialling.agent()).stdin(start.id, known)
            try:
                known = stdin.offset
                position = known
                # The stream began at the old offset, so what follows the new one needs a stream that begins there.
                stdin.detach()
                stdin = await (await redialling.agent()).stdin(start.id, known)
                while position < len(data):
                    await stdin.write(data[position : position + 50_000])
                    position += 50_000
                    await asyncio.sleep(0.02)
                await killer  # its last restart may have cut this off, too
                await stdin.close()
                ended = True
            finally:
                known = max(known, stdin.offset)
        except errors.Unavailable:
            continue
    assert redialling.dials >= 4
    assert (await ending).exit == 0
    assert target.read_bytes() == data


async def test_a_run_sent_again_runs_once(sandbox: AgentLab, redialling: Redialling) -> None:
    log = sandbox.directory / "log"
    starts = [
        Start(
            ids.new_process_id(), ["/bin/sh", "-c", f"echo {number} >> {log}; sleep 0.{number % 9 + 1}; echo {number}"]
        )
        for number in range(30)
    ]
    enough = sandbox.directory / "enough"
    # One lasts until all restarts are over, however long they take.
    lasting = f"echo 30 >> {log}; while [ ! -e {enough} ]; do sleep 0.05; done; echo 30"
    starts.append(Start(ids.new_process_id(), ["/bin/sh", "-c", lasting]))
    killer = asyncio.create_task(restarts(sandbox, redialling, 3, 0.15))
    killer.add_done_callback(lambda _: enough.touch())
    results = await asyncio.gather(*[redialling.call(lambda agent, start=start: agent.run(start)) for start in starts])
    await killer
    assert redialling.dials >= 4
    assert [result.stdout for result in results] == [b"%d\n" % number for number in range(31)]
    assert sorted(log.read_text().split(), key=int) == [str(number) for number in range(31)]


async def test_what_waits_is_told_at_once(sandbox: AgentLab) -> None:
    agent = await sandbox.connect()
    start = Start(ids.new_process_id(), ["sleep", "60"])
    await agent.exec(start)
    waiting = asyncio.create_task(agent.wait(start.id))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await sandbox.relay.kill()
    with pytest.raises(errors.Unavailable):
        await asyncio.wait_for(waiting, 20)  # at once; but a machine may stand still for seconds
    with pytest.raises(errors.Unavailable):
        await Connection.open(sandbox.relay.address, sandbox.token())
    await agent.connection.wait_closed()


async def test_a_killed_agent_is_told_at_once(sandbox: AgentLab) -> None:
    agent = await sandbox.connect()
    start = Start(ids.new_process_id(), ["sleep", "60"])
    waiting = asyncio.create_task(agent.run(start))
    await asyncio.sleep(0.2)
    os.kill(sandbox.pid, signal.SIGKILL)
    with pytest.raises(errors.Unavailable):
        await asyncio.wait_for(waiting, 20)
    await agent.connection.wait_closed()
    with pytest.raises((errors.Unavailable, errors.NotFound)):
        await Connection.open(sandbox.relay.address, sandbox.token(), wait_s=0.2)
