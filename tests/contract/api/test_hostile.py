"""Clients that break off, flood, stall and lie over WebSockets and streams: the process in the sandbox lives on, and
nothing is left in the server.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from shoal.cluster.api.processes import attach, splice
from shoal.cluster.api.request import streaming
from tests.contract.api.lab import Lab, lab, until
from tests.contract.api.rawsocket import BINARY, CLOSE, PING, TEXT, RawSocket, connection, frame, websocket

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

MIB = 1 << 20
_libc = ctypes.CDLL(None)
KEPT = 2
"""Idle connections that the gateway may keep to the replica for its next requests."""


@pytest.fixture
async def place() -> AsyncIterator[Lab]:
    """Behind a gateway, as clients find the API."""
    async with lab("sleep", "1000", gateway=True) as made:
        yield made


def rss() -> int:
    """Bytes of memory that this process holds: the server's, for its clients here hold nothing."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


def held() -> tuple[int, int]:
    """Tasks and descriptors of this process."""
    return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))


@asynccontextmanager
async def nothing_left(place: Lab) -> AsyncIterator[None]:
    """What is opened inside is gone soon after: tasks, descriptors, streams of the agent's."""
    await place.exec("true")  # what is made once is made
    before, streams = held(), await place.open_streams()
    yield

    async def gone() -> bool:
        now = held()
        return now[0] <= before[0] and now[1] <= before[1] + KEPT and await place.open_streams() <= streams

    try:
        await until(gone, "all is gone")
    except AssertionError:
        tasks = "\n".join(str(task.get_coro()) for task in asyncio.all_tasks())
        raise AssertionError(f"{held()} after {before}: {tasks}") from None


@asynccontextmanager
async def echo(place: Lab) -> AsyncIterator[int]:
    """The port of a server that says everything again."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass  # the other side broke off, as it was told to
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield int(server.sockets[0].getsockname()[1])


@asynccontextmanager
async def opened(place: Lab, kind: str, port: int = 0) -> AsyncIterator[RawSocket]:
    """A WebSocket of a kind, so far that bytes may flow: `attach` to a `cat` of the id `p-cat`."""
    path = f"ports/{port}" if kind == "ports" else kind
    async with websocket(f"{place.at}/{path}", place.token) as socket:
        if kind == "attach":
            rows = await _ids(place)
            first = {"id": "p-cat", "stdin_offset": None} if "p-cat" in rows else {"id": "p-cat", "argv": ["cat"]}
            await socket.send(frame(TEXT, json.dumps(first).encode()))
        opcode, said = await socket.message()
        assert opcode == TEXT
        assert json.loads(said).get("ok", True) is True, said
        yield socket


async def _ids(place: Lab) -> dict[str, bool]:
    async with place.http.get(f"{place.at}/processes") as answer:
        return {row["id"]: row["running"] for row in (await answer.json())["processes"]}


@pytest.mark.parametrize("how", ["reset", "end", "half"])
@pytest.mark.parametrize("kind", ["attach", "connect", "ports"])
async def test_one_that_breaks_off_in_a_frame(place: Lab, kind: str, how: str) -> None:
    whole = frame(BINARY, b"\0" + b"x" * 70_000)
    await place.start("cat", id="p-cat")
    async with echo(place) as port, nothing_left(place):
        for length in (1, 3, 9, 13, 20, 40_000, len(whole) - 1):
            async with opened(place, kind, port) as socket:
                await socket.send(whole[:length])
                if how == "reset":
                    socket.cut()
                elif how == "end":
                    socket.writer.close()
                else:
                    socket.writer.write_eof()
                    await asyncio.wait_for(socket.reader.read(), 10)  # it does not wait for the rest of the frame
    assert (await _ids(place))["p-cat"]
    assert (await place.exec("echo fine"))["stdout"] == "fine\n"
    async with place.http.post(f"{place.at}/processes/p-cat/stdin?offset=0", data=b"") as answer:
        assert (await answer.json())["offset"] == 0  # no part of a message that did not arrive went in


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for a sandbox that takes nothing."""
    monkeypatch.setattr(splice, "STALL_S", 0.5)
    monkeypatch.setattr(attach, "INPUT_STALL_S", 0.5)


@pytest.mark.parametrize(("kind", "work"), [("attach", "_Attachment."), ("ports", "splice.")])
async def test_one_that_vanishes_while_the_sandbox_takes_nothing(
    impatient: None, place: Lab, kind: str, work: str
) -> None:
    """Nobody listens to it then: what it said before waits, and its end would wait behind that."""
    ended = asyncio.Event()

    async def deaf(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.transport.abort()

    async def missed() -> bool:
        return not any(work in repr(task) for task in asyncio.all_tasks())

    await place.start("exec sleep 1000", id="p-cat")
    async with await asyncio.start_server(deaf, "127.0.0.1", 0) as server, nothing_left(place):
        async with opened(place, kind, int(server.sockets[0].getsockname()[1])) as socket:
            with suppress(TimeoutError, ConnectionError):
                while True:
                    socket.writer.write(frame(BINARY, bytes(200_000)))
                    await asyncio.wait_for(socket.writer.drain(), 0.5)
            socket.cut()
        await until(missed, "its end is noticed")
        ended.set()


async def test_a_message_in_many_pieces(place: Lab) -> None:
    async with echo(place) as port, nothing_left(place):
        for kind, mark in ("attach", b"\0"), ("ports", b""):
            async with opened(place, kind, port) as socket:
                data = os.urandom(50_000)
                sent = mark + data
                pieces = [sent[at : at + 500] for at in range(0, len(sent), 500)]
                last = len(pieces) - 1
                for number, piece in enumerate(pieces):
                    await socket.send(frame(BINARY if number == 0 else 0, piece, final=number == last))
                    if number % 10 == 0:
                        await socket.send(frame(PING, b"between"))
                got = b""
                while len(got) < len(data):
                    opcode, said = await socket.message()
                    if opcode == BINARY:
                        got += said[len(mark) :]
                assert got == data


@pytest.mark.parametrize("kind", ["attach", "connect", "ports"])
async def test_messages_that_are_none(place: Lab, kind: str) -> None:
    """Each has the connection closed with the code that says why, and harms nobody else."""
    too_large = frame(BINARY, bytes(300 << 10))
    huge = frame(BINARY, bytes(2 * MIB))
    in_pieces = [frame(BINARY if n == 0 else 0, bytes(100_000), final=False) for n in range(12)]
    text = frame(TEXT, b"\xff\xfe")
    async with echo(place) as port, nothing_left(place):
        for said, codes in [
            ([too_large], {1008}),
            ([huge], {1009}),
            (in_pieces, {1009}),
            ([b"\x82\xff" + b"\x7f" * 8 + bytes(4)], {1002, 1009}),  # of 9 exabytes
            ([b"\x82\xff" + b"\xff" * 8 + bytes(4)], {1002, 1009}),  # of a negative length
            ([text], {1007, 1008}),
            ([frame(TEXT, b'{"type":"?"}')], {1008}),
            ([frame(TEXT, b"[" * 100_000)], {1008}),
            ([b"\x82\x05hello"], {1002}),  # not masked
            ([b"\xf2\x80" + bytes(4)], {1002}),  # reserved bits
            ([frame(3, b"x")], {1002}),
            ([frame(0, b"x")], {1002}),  # goes on with nothing
            ([frame(PING, bytes(126))], {1002}),
            ([frame(PING, b"x", final=False)], {1002}),
            ([frame(CLOSE, b"\x00")], {1002}),
            ([frame(CLOSE, b"\x03\xe8\xff")], {1007, 1002}),
        ]:
            async with opened(place, kind, port) as socket:
                try:
                    await socket.send(*said)
                    code = await socket.close_code()
                except (asyncio.IncompleteReadError, ConnectionError):
                    assert sum(map(len, said)) > MIB  # it did not wait for all of it: a reset overtook its words
                    continue
                assert code in codes, (said[0][:20], code)


async def test_a_flood_of_pings_keeps_nobody_waiting(place: Lab) -> None:
    async with nothing_left(place), opened(place, "connect") as socket:
        before = rss()
        flood = frame(PING, bytes(125)) * 1000
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                socket.writer.write(flood)
                await socket.writer.drain()
                sent += 1000

        flooding = asyncio.ensure_future(send())
        for _ in range(5):
            # The flood does not end: whoever stands behind it waits for ever, and others no longer than a machine may
            # stand still.
            async with asyncio.timeout(20):
                assert (await place.exec("true"))["returncode"] == 0
        flooding.cancel()
        await asyncio.wait([flooding])
        assert rss() - before < 32 * MIB
        assert sent > 0


@asynccontextmanager
async def deaf(place: Lab, method: str, path: str, body: bytes = b"") -> AsyncIterator[RawSocket]:
    """A client that asks, and reads nothing unless told to."""
    lines = [
        f"{method} /v1/sandboxes/{place.sandbox_id}{path} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {place.token}",
    ]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    async with connection(place.server.url, "\n".join(lines), receive_buffer=1 << 14) as client:
        client.writer.write(body)
        yield client


async def steady(within_s: float = 20) -> int:
    """This process's memory, once it has stopped to grow. What is free in it goes back to the kernel first."""
    end = time.monotonic() + within_s
    last = rss()
    while True:
        await asyncio.sleep(0.4)
        _libc.malloc_trim(0)
        now = rss()
        if now - last < MIB or time.monotonic() > end:
            return now
        last = now


@pytest.mark.parametrize("what", ["output", "files", "archive"])
async def test_who_reads_nothing_fills_no_memory(place: Lab, what: str) -> None:
    """128 MiB wait for each of ten clients."""
    large = place.directory / "large"
    with large.open("wb") as file:
        file.truncate(128 * MIB)
    process = await place.start(f"head -c {128 * MIB} /dev/zero")
    path = {
        "output": f"/processes/{process}/output",
        "files": f"/files?path={large}",
        "archive": f"/archive?path={place.directory}",
    }[what]
    async with nothing_left(place):
        before = await steady()
        async with AsyncExitStack() as stack:
            for _ in range(10):
                client = await stack.enter_async_context(deaf(place, "GET", path))
                assert b" 200 " in await asyncio.wait_for(client.reader.readline(), 10)
            grown = await steady() - before
            assert (await place.exec("echo fine"))["stdout"] == "fine\n"
            assert grown < 48 * MIB, grown / MIB


async def test_of_long_answers_that_nobody_reads_few_are_kept(place: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of `exec` is held whole: where too many wait, those whose clients have stood still for the longest are
    given up.
    """
    monkeypatch.setattr(streaming, "slow_clients", streaming.SlowClientGuard(limit=100, patience_s=0.1))
    body = json.dumps({"command": f"head -c {32 * MIB} /dev/zero", "max_output": 32 * MIB}).encode()
    async with nothing_left(place):
        before = await steady()
        async with AsyncExitStack() as stack:
            for _ in range(8):
                client = await stack.enter_async_context(deaf(place, "POST", "/exec", body))
                assert b" 200 " in await asyncio.wait_for(client.reader.readline(), 30)
                await asyncio.sleep(0.2)  # by now it has stood still for longer than is borne
            grown = await steady() - before
            assert grown < 6 * 32 * MIB, grown / MIB
            # One that reads has all of it, whatever the others do.
            assert len((await place.exec(f"head -c {32 * MIB} /dev/zero", max_output=32 * MIB))["stdout"]) == 32 * MIB


async def test_who_attaches_and_reads_nothing_fills_no_memory(place: Lab) -> None:
    async with nothing_left(place):
        before = await steady()
        async with websocket(f"{place.at}/attach", place.token, receive_buffer=1 << 14) as socket:
            start = {"id": "p-much", "command": f"head -c {128 * MIB} /dev/zero"}
            await socket.send(frame(TEXT, json.dumps(start).encode()))
            grown = await steady() - before
            assert grown < 24 * MIB, grown / MIB
        assert (await _ids(place))["p-much"]
        async with place.http.post(f"{place.at}/processes/p-much/signal", json={"signal": "KILL"}) as answer:
            assert answer.status == 204


async def test_a_follower_that_says_it_is_done_is_let_go(place: Lab) -> None:
    """Half open: its end of the connection is closed, ours is not."""
    process = await place.start("cat")
    async with nothing_left(place), deaf(place, "GET", f"/processes/{process}/output") as client:
        await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 10)
        client.writer.write_eof()
        assert await asyncio.wait_for(client.reader.read(), 10) == b""
    assert (await _ids(place))[process]


async def test_two_that_feed_one_process_at_once(place: Lab) -> None:
    """Pieces of both go in whole, at the place that each named, and the loser is told."""
    process = await place.start("cat > /dev/null")

    async def feed(letter: bytes, offset: int) -> tuple[int, int | None]:
        url = f"{place.at}/processes/{process}/stdin?offset={offset}"
        async with place.http.post(url, data=letter * 300_000) as answer:
            told = await answer.json(content_type=None)
            return answer.status, told.get("offset")

    results = await asyncio.gather(*(feed(letter, 0) for letter in (b"a", b"b", b"c", b"d")))
    assert (200, 300_000) in results
    assert {status for status, _ in results} <= {200, 409}, results
    # The same bytes again, by whoever: they were had, and count once.
    assert await feed(b"e", 0) == (200, 300_000)
    assert await feed(b"e", 300_000) == (200, 600_000)


async def test_what_cannot_be_run_is_quoted_in_short(place: Lab) -> None:
    async with place.http.post(f"{place.at}/exec", json={"argv": ["x" * 100_000]}) as answer:
        assert answer.status == 400
        assert len(await answer.read()) < 10_000
