"""One connection per sandbox and loop: shared, renewed, bounded."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from shoal.model.access import Caller, caller
from shoal.model.errors import SandboxEnded, SandboxNotFound, Unavailable
from shoal.model.grants import Grant
from shoal.transport.connections import Connections
from shoal.wire.frames import Decoder, Kind, encode
from tests.contract.wire_peer import Peer, serving

pytestmark = [pytest.mark.timeout(30)]


class Cluster:
    """Gives access to the peer at `address`; counts how often it was asked."""

    def __init__(self, address: str = "", ttl_s: float = 600) -> None:
        self.address = address
        self.ttl_s = ttl_s
        self.asked: list[str] = []
        self.ended = False

    async def grant(self, sandbox_id: str) -> Grant:
        self.asked.append(sandbox_id)
        await asyncio.sleep(0.01)
        if self.ended:
            raise SandboxEnded("it has ended", reason="timeout")
        return Grant(sandbox_id, self.address, "token", time.time() + self.ttl_s)


class Answering:
    """A peer that answers pings, and remembers the connections it has had."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []

    async def __call__(self, peer: Peer) -> None:
        self.peers.append(peer)
        while True:
            stream, _ = await peer.opened()
            await peer.send(Kind.REPLY, stream, {"ok": {"version": 1, "uptime_ms": 1, "processes": 0}})


@pytest.mark.anyio
async def test_callers_share_one_attempt_and_one_connection() -> None:
    answering = Answering()
    async with serving(answering) as address:
        cluster = Cluster(address)
        connections = Connections(cluster.grant)
        agents = await asyncio.gather(*[connections.agent("sb-1") for _ in range(50)])
        assert len({id(agent) for agent in agents}) == 1
        assert await connections.agent("sb-1") is agents[0]
        assert await connections.agent("sb-2") is not agents[0]
        assert cluster.asked == ["sb-1", "sb-2"]
        await agents[0].ping()
        assert len(answering.peers) == 2
        await connections.close()
        assert agents[0].connection.closed


@pytest.mark.anyio
async def test_one_caller_that_gives_up_does_not_take_it_from_the_others() -> None:
    async with serving(Answering()) as address:
        connections = Connections(Cluster(address).grant)
        first = asyncio.create_task(connections.agent("sb-1"))
        second = asyncio.create_task(connections.agent("sb-1"))
        await asyncio.sleep(0)
        first.cancel()
        await (await second).ping()
        await connections.close()


@pytest.mark.anyio
async def test_a_broken_connection_is_replaced_with_the_grant_that_is_still_good() -> None:
    answering = Answering()
    async with serving(answering) as address:
        cluster = Cluster(address)
        connections = Connections(cluster.grant)
        first = await connections.agent("sb-1")
        await first.ping()
        answering.peers[0].writer.close()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(first.wait("p-1"), 5)
        second = await connections.agent("sb-1")
        assert second is not first
        await second.ping()
        assert cluster.asked == ["sb-1"]
        await connections.close()


@pytest.mark.anyio
async def test_a_grant_is_renewed_when_it_is_old_and_when_the_relay_has_moved() -> None:
    async with serving(Answering()) as first, serving(Answering()) as second:
        cluster = Cluster(first, ttl_s=10)  # less than the margin
        connections = Connections(cluster.grant)
        (await connections.agent("sb-1")).connection.close()
        (await connections.agent("sb-1")).connection.close()
        assert len(cluster.asked) == 2
        cluster.ttl_s = 600
        (await connections.agent("sb-1")).connection.close()
        (await connections.agent("sb-1")).connection.close()
        assert len(cluster.asked) == 3
        connections._grants["sb-1"] = Grant(
            "sb-1", "127.0.0.1:1", "token", time.time() + 600
        )  # nobody is there any more
        cluster.address = second
        await (await connections.agent("sb-1")).ping()
        assert len(cluster.asked) == 4
        await connections.close()


@pytest.mark.anyio
async def test_the_end_of_a_sandbox_is_told_and_nothing_of_it_is_kept() -> None:
    async with serving(Answering()) as address:
        cluster = Cluster(address)
        connections = Connections(cluster.grant)
        agent = await connections.agent("sb-1")
        connections.forget("sb-1")
        assert agent.connection.closed
        cluster.ended = True
        with pytest.raises(SandboxEnded):
            await connections.agent("sb-1")
        with pytest.raises(SandboxEnded):
            await connections.agent("sb-1")
        assert cluster.asked == ["sb-1"] * 3
        await connections.close()


@pytest.mark.anyio
async def test_the_table_is_bounded_and_what_is_closed_is_dropped() -> None:
    async with serving(Answering()) as address:
        connections = Connections(Cluster(address).grant, limit=3)
        agents = [await connections.agent(f"sb-{n}") for n in range(5)]
        assert [agent.connection.closed for agent in agents] == [True, True, False, False, False]
        assert await connections.agent("sb-2") is agents[2]
        assert len(connections._grants) <= 6
        await connections.close()
        wide = Connections(Cluster(address).grant)
        for number in range(200):
            (await wide.agent(f"sb-{number}")).connection.close()
        table = wide._agents._tables.peek()
        assert table is not None
        assert 0 < len(table.agents) <= 66
        await wide.close()


@pytest.mark.timeout(90)  # another interpreter
def test_each_loop_has_its_own_and_leaves_nothing_when_it_ends() -> None:
    # In an interpreter of its own, which tells of every socket that nobody closed.
    code = """
        import asyncio, gc, logging
        from shoal.transport.connections import Connections
        from tests.contract.test_client_connections import Answering, Cluster, serving

        logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of what is slow, as all is at times
        cluster = Cluster()
        connections = Connections(cluster.grant)

        async def use():
            async with serving(Answering()) as cluster.address:
                connections._grants.clear()
                await (await connections.agent("sb-1")).ping()
                assert len(connections._agents._tables) == 1

        for _ in range(3):
            asyncio.run(use())
            assert len(connections._agents._tables) == 0
        gc.collect()
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.anyio
async def test_what_is_kept_for_one_caller_is_not_there_for_a_stranger() -> None:
    async with serving(Answering()) as address:
        cluster = Cluster(address)
        connections = Connections(cluster.grant)
        mine = await connections.agent("sb-1")
        token = caller.set(Caller("tk-1", "dev"))
        try:
            for reach in (connections.agent, connections.channel, connections.grant):
                with pytest.raises(SandboxNotFound):
                    await reach("sb-1")
            with pytest.raises(SandboxNotFound):
                await connections.dial("sb-1", 80)
        finally:
            caller.reset(token)
        assert await connections.agent("sb-1") is mine
        assert cluster.asked == ["sb-1"]
        await connections.close()


@pytest.mark.anyio
async def test_a_stranger_s_attempt_is_not_shared() -> None:
    async with serving(Answering()) as address:

        async def grant(sandbox_id: str) -> Grant:
            await asyncio.sleep(0.01)
            if caller.get().environment == "dev":
                raise SandboxNotFound(f"there is no sandbox {sandbox_id}")
            return Grant(sandbox_id, address, "token", time.time() + 600)

        connections = Connections(grant)

        async def as_stranger() -> None:
            caller.set(Caller("tk-1", "dev"))
            await connections.agent("sb-1")

        stranger = asyncio.create_task(as_stranger())
        await asyncio.sleep(0)
        await (await connections.agent("sb-1")).ping()
        with pytest.raises(SandboxNotFound):
            await stranger
        await connections.close()


@pytest.mark.anyio
async def test_a_channel_carries_frames_as_they_are() -> None:
    async with serving(Answering()) as address:
        connections = Connections(Cluster(address).grant)
        channel = await connections.channel("sb-1")
        await channel.write(encode(Kind.OPEN, 1, b'{"op":"ping"}'))
        decoder = Decoder()
        frames = decoder.feed(await asyncio.wait_for(channel.read(), 5))
        assert [(frame.kind, frame.stream) for frame in frames] == [(Kind.REPLY, 1)]
        await channel.close()
        with pytest.raises(Unavailable):
            await channel.write(b"x")
        await channel.close()


@pytest.mark.anyio
async def test_who_waits_for_a_connection_is_told_that_all_are_closed() -> None:
    asked = asyncio.Event()

    async def grant(sandbox_id: str) -> Grant:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    connections = Connections(grant)
    waiting = asyncio.create_task(connections.agent("sb-1"))
    await asked.wait()
    await connections.close()
    with pytest.raises(Unavailable, match="closed meanwhile"):
        await waiting
    asked.clear()
    given_up = asyncio.create_task(connections.agent("sb-1"))
    await asked.wait()
    given_up.cancel()
    await connections.close()
    with pytest.raises(asyncio.CancelledError):
        await given_up
