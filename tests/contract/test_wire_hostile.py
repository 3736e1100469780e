"""Relays and agents that lie, stall and flood: each ends in a typed error, soon, and in bounded memory."""

from __future__ import annotations

import asyncio
import json
import random
import struct
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shoal.model import errors
from shoal.wire import files
from shoal.wire.agent import Agent, Start
from shoal.wire.connection import Connection
from shoal.wire.frames import Kind, encode
from tests.contract.wire_peer import RUN, Peer, Script, answers, connected, serving
from tests.ports import silent_port

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


def _says(data: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.opened()
        await peer.raw(data)
        await peer.reader.read()

    return script


# Opening


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"v": 1, "error": {"code": "unauthenticated", "message": "expired"}}, errors.Unauthenticated),
        ({"v": 1, "error": {"code": "not_found", "message": "no such container"}}, errors.NotFound),
        ({"v": 1, "error": {"code": "unavailable", "message": "no agent"}}, errors.Unavailable),
        ({"v": 9, "ok": True}, errors.Internal),
        (b"not json", errors.Internal),
        (b"[" * 8000, errors.Internal),
        (b" " * 100_000, errors.Internal),
    ],
)
async def test_open_refused(payload: bytes | dict[str, Any], expected: type[errors.ShoalError]) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(Kind.HELLO, 0, payload)

    async with serving(script, admit=False) as address:
        with pytest.raises(errors.ShoalError) as caught:
            await Connection.open(address, "token")
    assert type(caught.value) is expected


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 64, encode(Kind.REPLY, 1, b'{"ok":{}}')])
async def test_open_of_what_is_no_relay(data: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.raw(data)
        await peer.reader.read()

    async with serving(script, admit=False) as address:
        with pytest.raises(errors.Internal):
            await Connection.open(address, "token")


async def test_open_of_a_relay_that_hangs_up() -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()

    async with serving(script, admit=False) as address:
        with pytest.raises(errors.Unavailable, match="closed by the other side"):
            await Connection.open(address, "token")


async def test_open_of_a_relay_that_is_silent() -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read()

    async with serving(script, admit=False) as address:
        with pytest.raises(errors.DeadlineExceeded):
            await Connection.open(address, "token", timeout_s=0.2)


async def test_open_where_nobody_listens() -> None:
    with silent_port() as port, pytest.raises(errors.Unavailable):
        await Connection.open(f"127.0.0.1:{port}", "token")


@pytest.mark.parametrize("address", ["", "host", ":80", "host:", "host:0", "host:70000", "host:x", "host:²", "a..b:80"])
async def test_open_of_a_malformed_address(address: str) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        await Connection.open(address, "token")
    assert caught.value.field == "address"


@pytest.mark.parametrize("wait_s", [-1, 61, float("nan")])
async def test_open_with_a_malformed_wait(wait_s: float) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        await Connection.open("127.0.0.1:1", "token", wait_s=wait_s)
    assert caught.value.field == "wait_s"


@pytest.mark.parametrize("token", ["", "é", "t" * 5000])
async def test_open_with_a_malformed_token(token: str) -> None:
    with pytest.raises(errors.Unauthenticated):
        await Connection.open("127.0.0.1:1", token)


# The grammar


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 100,
        struct.pack(">IBI", 0xFFFFFFFF, 4, 1),
        struct.pack(">IBI", 4, 4, 1),
        struct.pack(">IBI", 5, 200, 1),
        encode(Kind.HELLO, 0, b"{}"),
        encode(Kind.OPEN, 1, b"{}"),
        encode(Kind.END, 1),
        encode(Kind.CANCEL, 1),
        encode(Kind.CREDIT, 1, b"123"),
        encode(Kind.REPLY, 1, b"nonsense"),
        encode(Kind.REPLY, 1, b"[]"),
        encode(Kind.REPLY, 1, b"{" * 500_000),
        encode(Kind.EVENT, 1, b"{}"),
        encode(Kind.DATA, 1, b"x"),
        encode(Kind.ERRDATA, 1, b"x"),
    ],
)
async def test_a_breach_ends_the_connection_for_all(data: bytes) -> None:
    """A ping has no place for any of these; whoever else waits on that connection is told at once too."""
    async with connected(_says(data)) as connection:
        agent = Agent(connection)
        calls = [asyncio.create_task(agent.ping()), asyncio.create_task(agent.wait("p-1"))]
        results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
        assert [type(result) for result in results] == [errors.Internal, errors.Internal]
        assert results[0] is not results[1]
        assert connection.closed
        with pytest.raises(errors.Internal):
            await agent.ping()


async def test_frames_of_streams_that_are_not_open_are_ignored() -> None:
    async def script(peer: Peer) -> None:
        stream, _ = await peer.opened()
        for kind in (Kind.DATA, Kind.EVENT, Kind.REPLY, Kind.CREDIT, Kind.ERRDATA):
            await peer.send(kind, 999, b"anything")
        await peer.send(Kind.REPLY, stream, {"ok": {"version": "1", "uptime_ms": 1, "processes": 0}})
        await peer.reader.read()

    async with connected(script) as connection:
        assert (await Agent(connection).ping())["version"] == "1"


@pytest.mark.parametrize("seed", range(15))
async def test_random_bytes(seed: int) -> None:
    rng = random.Random(seed)
    frames = [encode(rng.choice(list(Kind)), rng.randrange(4), rng.randbytes(rng.randrange(40))) for _ in range(50)]
    data = bytearray(b"".join(frames))
    for _ in range(5):
        data[rng.randrange(len(data))] = rng.randrange(256)

    async with connected(_says(bytes(data))) as connection:
        with pytest.raises((errors.Internal, errors.DeadlineExceeded)):
            await connection.request({"op": "ping"}, timeout_s=0.5)


# The calls


@pytest.mark.parametrize(
    "call",
    [
        lambda a: a.ping(),
        lambda a: a.run(Start("p-1", ["x"])),
        lambda a: a.exec(Start("p-1", ["x"])),
        lambda a: a.wait("p-1"),
        lambda a: a.ps(),
        lambda a: a.read_bytes("/f"),
        lambda a: a.write("/f", b"x"),
        lambda a: a.stat("/f"),
        lambda a: a.unpack("/f", b""),
        lambda a: a.idle(0),
    ],
)
@pytest.mark.parametrize(
    "ok", [{}, {"id": [], "exit": {}, "size": "x", "pid": -1, "processes": {"a": 1}, "idle_ms": 1.5}]
)
async def test_wrong_types_in_a_reply(call: Callable[[Agent], Awaitable[Any]], ok: dict[str, Any]) -> None:
    async with connected(answers((Kind.REPLY, {"ok": ok}))) as connection:
        with pytest.raises(errors.Internal):
            await call(Agent(connection))


async def test_an_agent_cannot_end_its_sandbox_in_words() -> None:
    reply = {"error": {"code": "sandbox_ended", "message": "bye", "reason": "node_lost"}}
    async with connected(answers((Kind.REPLY, reply))) as connection:
        with pytest.raises(errors.Internal):
            await Agent(connection).ping()


async def _flood(peer: Peer, kind: Kind, stream: int, chunk: bytes, credit: int = 1 << 40) -> int:
    """Sends for as long as the client gives credit (or, with more credit than it gave, for ever)."""
    sent = 0
    while sent + len(chunk) <= credit:
        await peer.send(kind, stream, chunk)
        sent += len(chunk)
    return sent


@pytest.mark.parametrize("kind", [Kind.DATA, Kind.ERRDATA])
async def test_run_with_more_output_than_was_asked_for(kind: Kind) -> None:
    async def script(peer: Peer) -> None:
        stream, _ = await peer.opened()
        await _flood(peer, kind, stream, b"x" * 10_000)

    async with connected(script) as connection:
        with pytest.raises(errors.Internal, match="more than the 100000 bytes"):
            await Agent(connection).run(Start("p-1", ["x"]), max_output=100_000)
        assert connection.closed


async def test_run_output_up_to_the_bound_is_kept_per_stream() -> None:
    frames = [(Kind.DATA, b"o" * 1000), (Kind.ERRDATA, b"e" * 1000), (Kind.REPLY, {"ok": RUN})]
    async with connected(answers(*frames)) as connection:
        result = await Agent(connection).run(Start("p-1", ["x"]), max_output=1000)
        assert (result.stdout, result.stderr) == (b"o" * 1000, b"e" * 1000)


async def test_data_beyond_the_credit() -> None:
    async def script(peer: Peer) -> None:
        stream, _ = await peer.opened()
        await _flood(peer, Kind.DATA, stream, b"x" * 65536)

    async with connected(script) as connection:
        output = await Agent(connection).output("p-1", 1)
        await asyncio.wait_for(connection.wait_closed(), 20)  # though nobody reads
        with pytest.raises(errors.Internal, match="more than it was allowed"):
            async for _ in output:
                pass


async def test_a_flood_of_tiny_frames_takes_little_memory() -> None:
    async def script(peer: Peer) -> None:
        stream, _ = await peer.opened()
        one = encode(Kind.DATA, stream, b"x") * 1000
        for _ in range(50):
            await peer.raw(one)
        ping, _ = await peer.opened()
        await peer.send(Kind.REPLY, ping, {"ok": {"version": "1", "uptime_ms": 1, "processes": 0}})
        await peer.reader.read()

    async with connected(script) as connection:
        agent = Agent(connection)
        tracemalloc.start()
        try:
            output = await agent.output("p-1", 1)
            await agent.ping()  # all of them have come by then
            used, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert used < 1 << 20
        assert not connection.closed
        got = 0
        async for chunk in output:
            got += len(chunk)
            if got == 50_000:
                break
        await output.aclose()


async def test_a_flood_of_events_that_nobody_takes() -> None:
    async def script(peer: Peer) -> None:
        stream, _ = await peer.opened()
        await _flood(peer, Kind.EVENT, stream, json.dumps({"gap": [0, 1], "x": "y" * 100_000}).encode())

    async with connected(script) as connection:
        output = await Agent(connection).output("p-1", 1)
        await asyncio.wait_for(connection.wait_closed(), 10)
        with pytest.raises(errors.Internal):
            async for _ in output:
                pass


async def test_a_slow_watcher_is_told_that_it_missed_some() -> None:
    async def script(peer: Peer) -> None:
        stream, _ = await peer.opened()
        await peer.send(Kind.EVENT, stream, {"watching": True})
        for index in range(60_000):
            peer.writer.write(
                encode(Kind.EVENT, stream, json.dumps({"kind": "created", "path": f"/w/{index}"}).encode())
            )
        await peer.writer.drain()
        ping, _ = await peer.opened()
        await peer.send(Kind.REPLY, ping, {"ok": {"version": "1", "uptime_ms": 1, "processes": 0}})
        await peer.reader.read()

    async with connected(script) as connection:
        agent = Agent(connection)
        async with agent.watch("/w") as changes:
            await agent.ping()  # all events have come by then
            kinds = []
            async for change in changes:
                kinds.append(change.kind)
                if change.kind == "overflow":
                    break
        assert 1000 < len(kinds) < 60_000
        assert set(kinds) == {"created", "overflow"}


@pytest.mark.parametrize(
    "event",
    [{"gap": [5, 3]}, {"gap": [-1, 5]}, {"gap": "x"}, {"gap": [1]}, {"gap": [1.5, 2]}, {"gap": [0, 1 << 70]}, {}],
)
async def test_a_malformed_gap(event: dict[str, Any]) -> None:
    async with connected(answers((Kind.EVENT, event))) as connection:
        with pytest.raises(errors.Internal):
            async for _ in Agent(connection).output("p-1", 1):
                pass


@pytest.mark.parametrize(
    "event",
    [{"held": [5, 3]}, {"held": [0, 5]}, {"held": "x"}, {"held": [1]}, {"held": [2, 1 << 70]}, {"gap": [1, 2]}, {}],
)
async def test_a_malformed_telling(event: dict[str, Any]) -> None:
    async with connected(answers((Kind.EVENT, event))) as connection:
        with pytest.raises(errors.Internal):
            await Agent(connection).output("p-1", 1, 1, tell=True)


async def test_output_that_ends_before_its_end() -> None:
    async with connected(answers((Kind.DATA, b"abc"), (Kind.REPLY, {"ok": {"offset": 5}}))) as connection:
        output = await Agent(connection).output("p-1", 1)
        assert await anext(output) == b"abc"
        with pytest.raises(errors.Internal, match="lost output"):
            await anext(output)


async def test_gaps_move_the_offset() -> None:
    frames = [
        (Kind.EVENT, {"gap": [10, 20]}),
        (Kind.DATA, b"abc"),
        (Kind.EVENT, {"gap": [23, 30]}),
        (Kind.REPLY, {"ok": {"offset": 30}}),
    ]
    async with connected(answers(*frames)) as connection:
        output = Agent(connection).output("p-1", 1, offset=10)
        assert [chunk async for chunk in output] == [b"abc"]
        assert (output.offset, output.gaps) == (30, [(10, 20), (23, 30)])


async def test_read_bytes_of_more_than_was_asked_for() -> None:
    async with connected(answers((Kind.DATA, b"12345"))) as connection:
        with pytest.raises(errors.Internal, match="more than the 4 bytes"):
            await Agent(connection).read_bytes("/f", length=4)


async def test_read_bytes_of_another_size_than_told() -> None:
    async with connected(answers((Kind.DATA, b"123"), (Kind.REPLY, {"ok": {"size": 4}}))) as connection:
        with pytest.raises(errors.Internal, match="another size"):
            await Agent(connection).read_bytes("/f")


async def test_read_bytes_of_a_file_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_READ", 3 << 20)

    async def script(peer: Peer) -> None:
        stream, request = await peer.opened()
        await _flood(peer, Kind.DATA, stream, b"x" * 65536, request["length"])
        await peer.send(Kind.DATA, stream, b"x")
        await peer.send(Kind.REPLY, stream, {"ok": {"size": request["length"]}})
        await peer.reader.read()

    async with connected(script) as connection:
        with pytest.raises(errors.QuotaExceeded) as caught:
            await Agent(connection).read_bytes("/dev/zero")
        assert caught.value.field == "length"


async def test_list_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ENTRIES", 1000)
    entry = {"name": "f", "path": "/f", "kind": "file", "size": 0, "mode": 0, "uid": 0, "gid": 0, "mtime_ns": 0}

    async def script(peer: Peer) -> None:
        stream, _ = await peer.opened()
        while True:
            await peer.send(Kind.EVENT, stream, {"entries": [entry] * 256})

    async with connected(script) as connection:
        with pytest.raises(errors.QuotaExceeded) as caught:
            await Agent(connection).list("/")
        assert caught.value.field == "path"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "a\0"])
async def test_list_of_names_that_lead_elsewhere(name: str) -> None:
    entry = {"name": name, "path": "/f", "kind": "file", "size": 0, "mode": 0, "uid": 0, "gid": 0, "mtime_ns": 0}
    async with connected(answers((Kind.EVENT, {"entries": [entry]}))) as connection:
        with pytest.raises(errors.Internal, match="name"):
            await Agent(connection).list("/")
