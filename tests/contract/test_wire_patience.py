"""Silent peers, cancelled calls and failing sources: each call ends in time and leaves nothing open."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from shoal.model import errors
from shoal.wire import files, processes
from shoal.wire.agent import Agent, Start
from shoal.wire.frames import Kind, encode_credit
from tests.contract.wire_peer import RUN, Peer, answers, connected

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


# Silence


async def _silent(peer: Peer) -> None:
    await peer.reader.read()


@pytest.mark.parametrize(
    "call",
    [
        lambda a: a.ping(),
        lambda a: a.exec(Start("p-1", ["x"])),
        lambda a: a.run(Start("p-1", ["x"], timeout_s=0.1)),
        lambda a: a.stdin("p-1"),
        lambda a: a.signal("p-1", 9),
        lambda a: a.resize("p-1", 1, 1),
        lambda a: a.ps(),
        lambda a: a.read_bytes("/f"),
        lambda a: anext(a.read("/f")),
        lambda a: anext(a.pack("/f")),
        lambda a: a.write("/f", b"x"),
        lambda a: a.write("/f", b"x" * (4 << 20)),
        lambda a: a.write("/f", _chunks(b"x" * (2 << 20))),
        lambda a: a.list("/"),
        lambda a: a.stat("/"),
        lambda a: a.mkdir("/d"),
        lambda a: a.unpack("/d", b"x"),
        lambda a: a.watch("/d"),
        lambda a: a.shutdown(0),
    ],
)
async def test_no_wait_is_for_ever(call: Callable[[Agent], Awaitable[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "REPLY_S", 0.2)
    monkeypatch.setattr(processes, "_KILL_S", 0.1)
    monkeypatch.setattr(files, "REPLY_S", 0.2)
    monkeypatch.setattr(files, "IDLE_S", 0.2)
    monkeypatch.setattr("shoal.wire.agent.REPLY_S", 0.2)
    async with connected(_silent) as connection:
        with pytest.raises(errors.DeadlineExceeded):
            await asyncio.wait_for(_await(call(Agent(connection))), 5)
        assert not connection.closed
        assert not connection.open_streams


async def _await(value: Awaitable[Any]) -> Any:
    return await value


async def _chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_a_lost_connection_fails_all_that_is_open() -> None:
    async def script(peer: Peer) -> None:
        for _ in range(4):
            await peer.opened()

    async with connected(script) as connection:
        agent = Agent(connection)
        output = await agent.output("p-1", 1)
        results = await asyncio.gather(
            agent.run(Start("p-1", ["x"])),
            agent.wait("p-1"),
            agent.read_bytes("/f"),
            anext(output),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [errors.Unavailable] * 4
        assert connection.closed
        with pytest.raises(errors.Unavailable):
            await agent.ping()


async def test_close_fails_what_is_open_and_is_harmless_again() -> None:
    async with connected(_silent) as connection:
        call = asyncio.create_task(Agent(connection).wait("p-1"))
        await asyncio.sleep(0.05)
        connection.close()
        connection.close()
        with pytest.raises(errors.Unavailable):
            await call
        await asyncio.wait_for(connection.wait_closed(), 20)  # at once, on a machine that does not stand still


async def test_close_does_not_wait_for_a_peer_that_reads_nothing() -> None:
    async def script(peer: Peer) -> None:
        await peer.opened()
        await asyncio.sleep(60)

    async with connected(script) as connection:
        call = asyncio.create_task(Agent(connection).write("/f", b"x" * (1 << 20)))
        await asyncio.sleep(0.1)
        connection.close()
        with pytest.raises(errors.Unavailable):
            await call
        await asyncio.wait_for(connection.wait_closed(), 5)


# Giving up


async def _frames_until_quiet(peer: Peer, seen: list[tuple[Kind, int]]) -> None:
    while True:
        frame = await peer.receive()
        seen.append((frame.kind, frame.stream))


async def test_a_cancelled_call_cancels_its_stream() -> None:
    seen: list[tuple[Kind, int]] = []
    async with connected(lambda peer: _frames_until_quiet(peer, seen)) as connection:
        agent = Agent(connection)
        for call in (agent.wait("p-1"), agent.run(Start("p-1", ["x"])), agent.read_bytes("/f"), agent.list("/")):
            task = asyncio.ensure_future(call)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with agent.read("/f"):
            pass
        await asyncio.sleep(0.05)
        assert [stream for kind, stream in seen if kind is Kind.CANCEL] == [1, 2, 3, 4, 5]
        assert not connection.open_streams


async def test_a_forgotten_flow_cancels_its_stream() -> None:
    async with connected(answers((Kind.DATA, b"some"))) as connection:
        async for chunk in Agent(connection).output("p-1", 1):
            assert chunk == b"some"
            break
        gc.collect()
        await asyncio.sleep(0.01)
        assert not connection.open_streams


async def test_a_source_that_fails_cancels_the_write() -> None:
    seen: list[tuple[Kind, int]] = []

    async def source() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("the other half is lost")

    async with connected(lambda peer: _frames_until_quiet(peer, seen)) as connection:
        with pytest.raises(RuntimeError, match="other half"):
            await Agent(connection).write("/f", source())
        await asyncio.sleep(0.05)
        assert [kind for kind, _ in seen] == [Kind.OPEN, Kind.DATA, Kind.CANCEL]


async def test_an_error_in_the_middle_of_a_write_stops_it() -> None:
    """The disk is full after the first megabyte: no use in sending the other seven, and the caller learns why."""
    error = {"error": {"code": "quota_exceeded", "message": "the disk is full"}}
    for data in (b"x" * (8 << 20), _chunks(*[b"x" * (1 << 20)] * 8)):
        async with connected(answers((Kind.REPLY, error))) as connection:
            with pytest.raises(errors.QuotaExceeded):
                await Agent(connection).write("/f", data)


async def test_input_waits_for_credit() -> None:
    received = 0

    async def script(peer: Peer) -> None:
        nonlocal received
        stream, request = await peer.opened()
        assert request["stdin"] is True
        credit = 1 << 20
        while (frame := await peer.receive()).kind is Kind.DATA:
            received += len(frame.payload)
            credit -= len(frame.payload)
            assert credit >= 0
            if credit < 1 << 19:
                await asyncio.sleep(0.01)
                await peer.raw(encode_credit(stream, 300_000))
                credit += 300_000
        assert frame.kind is Kind.END
        await peer.send(Kind.REPLY, stream, {"ok": RUN})
        await peer.reader.read()

    async with connected(script) as connection:
        await Agent(connection).run(Start("p-1", ["cat"]), input=b"x" * 5_000_000)
    assert received == 5_000_000


async def test_stdin_offset_follows_the_credit() -> None:
    async def script(peer: Peer) -> None:
        stream, request = await peer.opened()
        assert request["offset"] == 100
        await peer.send(Kind.EVENT, stream, {"offset": 150})
        frame = await peer.receive()
        assert len(frame.payload) == 1000
        await peer.raw(encode_credit(stream, 600))
        assert (await peer.receive()).kind is Kind.END
        await peer.send(Kind.REPLY, stream, {"ok": {"offset": 1100}})
        await peer.reader.read()

    async with connected(script) as connection:
        stdin = await Agent(connection).stdin("p-1", 100)
        assert stdin.offset == 150
        await stdin.write(b"x" * 1000)
        async with asyncio.timeout(20):
            while stdin.offset == 150:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.01)
        assert stdin.offset == 700
        await stdin.close()
        assert stdin.offset == 1100
        with pytest.raises(errors.FailedPrecondition):
            await stdin.write(b"more")
