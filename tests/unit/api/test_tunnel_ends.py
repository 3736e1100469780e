"""Tunnels that are taken back, clients that vanish or read nothing, messages that never end: what stands ends, and holds little till then."""

from __future__ import annotations

import asyncio
import gc
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp import web
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import serve

from shoal.cluster.api.processes import websockets
from shoal.cluster.api.request.streaming import SlowClientGuard
from shoal.cluster.api.tunnels import tunnel_access, tunnel_http, tunnel_sockets
from shoal.cluster.serving.websockets import OPTIONS
from shoal.model.access import Scope
from shoal.wire.budget import Budget
from tests.contract.api.lab import until
from tests.contract.api.rawsocket import BINARY, PING, RawSocket, connection, frame, websocket
from tests.unit.api.test_tunnel_sockets import closed, echo
from tests.unit.api.tunnel_lab import PORT, Lab, answer_handshake, opened, through

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # seconds for all of it

MIB = 1 << 20


@pytest.fixture
async def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anyio_backend: str) -> AsyncIterator[Lab]:
    """Everything that is looked at now and then is looked at often."""
    monkeypatch.setitem(OPTIONS, "ws_ping_interval", 0.05)
    monkeypatch.setitem(OPTIONS, "ws_ping_timeout", 0.05)
    monkeypatch.setattr(websockets, "LAST_S", 0.1)
    monkeypatch.setattr(tunnel_access, "GUARD_S", 0.05)
    monkeypatch.setattr(tunnel_access, "KNOWN_S", 0.05)
    async with opened(tmp_path, token_cache=0.05) as made:
        yield made


def carriers(work: str = "") -> int:
    """Tasks that carry something through a tunnel, those that do `work`."""
    return sum(f"Carrier.{work}" in repr(task) for task in asyncio.all_tasks())


async def none_left() -> None:
    async def gone() -> bool:
        return not carriers()

    await until(gone, "what carried is gone")


# What is taken back


@asynccontextmanager
async def standing(lab: Lab, headers: dict[str, str]) -> AsyncIterator[ClientConnection]:
    """A WebSocket through the tunnel, to a server that says everything again."""
    async with serve(echo, "127.0.0.1", 0) as server:
        lab.fake.ports[PORT] = through(next(iter(server.sockets)).getsockname()[1])
        async with connect(lab.url(scheme="ws"), additional_headers=headers, proxy=None) as socket:
            await socket.send("a")
            assert await socket.recv() == "a"
            yield socket


async def test_a_closed_tunnel_ends_its_websockets(lab: Lab) -> None:
    async with standing(lab, lab.key) as socket:
        await lab.fake.unexpose(lab.sandbox_id, PORT)
        assert await closed(socket) == (1008, "tunnel_not_found")


async def test_a_tunnel_that_becomes_private_ends_what_needed_no_token(lab: Lab) -> None:
    await lab.fake.expose(lab.sandbox_id, PORT, protocol="http", public=True)
    async with (
        standing(lab, {}) as anyone,
        connect(lab.url(scheme="ws"), additional_headers=lab.key, proxy=None) as holder,
    ):
        await lab.fake.expose(lab.sandbox_id, PORT, protocol="http", public=False)
        assert await closed(anyone) == (4401, "unauthenticated")
        await holder.send("b")
        assert await holder.recv() == "b"


async def test_a_revoked_api_token_ends_what_it_opened(lab: Lab) -> None:
    info, token = await lab.fake.admin.create_token("t", "main", Scope.RUN, None)
    async with standing(lab, {"Authorization": f"Bearer {token}"}) as socket:
        await lab.fake.admin.revoke_token(info.id)
        assert await closed(socket) == (4401, "unauthenticated")


async def test_a_connect_token_that_expires_ends_nothing_that_it_opened(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, late = 0, 0.0
    still = tunnel_access.Door._still

    async def counted(*args: object) -> None:
        nonlocal looks
        await still(*args)  # type: ignore[arg-type]
        looks += 1

    monkeypatch.setattr(tunnel_access.Door, "_still", counted)
    monkeypatch.setattr(tunnel_access, "time", SimpleNamespace(time=lambda: time.time() + late))
    key = lab.key
    async with standing(lab, key) as socket:
        late = 61.0
        async with lab.session.get(lab.url(), headers=key) as answer:
            assert answer.status == 401, "the token has expired"
        before = looks

        async def looked() -> bool:
            return looks > before + 2

        await until(looked, "it was looked at again")
        await socket.send("b")
        assert await socket.recv() == "b"


async def test_a_closed_tunnel_ends_streams(lab: Lab) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await asyncio.Event().wait()
        return response

    async with lab.web(web.get("/", stream)), lab.session.get(lab.url(), headers=lab.key) as answer:
        assert await answer.content.read(5) == b"first"
        await lab.fake.unexpose(lab.sandbox_id, PORT)
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.content.read()


# Who vanishes


async def for_ever() -> None:
    """Known to the loop: a server's task that waits for what nobody else knows is garbage once its connection is paused."""
    await asyncio.sleep(3600)


async def deaf_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await answer_handshake(reader, writer)
    try:
        await for_ever()
    finally:
        writer.transport.abort()


async def flood(client: RawSocket, piece: bytes) -> None:
    """Sends until nothing is taken any more."""
    try:
        while True:
            client.writer.write(piece)
            await asyncio.wait_for(client.writer.drain(), 0.5)
    except TimeoutError:
        pass


async def test_a_client_that_vanishes_while_the_server_takes_nothing_is_missed(lab: Lab) -> None:
    await lab.fake.expose(lab.sandbox_id, PORT, protocol="http", public=True)
    async with lab.raw(deaf_server):
        async with websocket(lab.url(), "") as client:
            await flood(client, frame(BINARY, bytes(MIB)))
            assert carriers()
        await none_left()


async def test_a_server_that_takes_nothing_ends_its_websocket(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel_sockets, "STALL_S", 3.0)
    await lab.fake.expose(lab.sandbox_id, PORT, protocol="http", public=True)
    async with lab.raw(deaf_server), websocket(lab.url(), "") as client:
        await flood(client, frame(BINARY, bytes(MIB)))
        assert await client.close_code() == 1011


async def test_a_client_that_vanishes_in_an_upload_is_missed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel_http, "ANSWER_S", 3.0)

    async def answers_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        try:
            await for_ever()
        finally:
            writer.transport.abort()

    head = f"POST /t/{lab.sandbox_id}/{PORT}/ HTTP/1.1\nHost: x\nContent-Length: 1000000000"
    await lab.fake.expose(lab.sandbox_id, PORT, protocol="http", public=True)
    async with lab.raw(answers_first):
        async with connection(lab.url(), head) as client:
            await flood(client, bytes(MIB))
            assert carriers()
        await none_left()


# Who reads nothing, and what never ends


@asynccontextmanager
async def visitor(lab: Lab, kind: str) -> AsyncIterator[RawSocket]:
    """One that reads nothing but its answer's beginning."""
    if kind == "websocket":
        async with websocket(lab.url(), "", receive_buffer=1 << 14) as client:
            yield client
    else:
        head = f"GET /t/{lab.sandbox_id}/{PORT}/ HTTP/1.1\nHost: x"
        async with connection(lab.url(), head, receive_buffer=1 << 14) as client:
            await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 10)
            yield client


def floods(kind: str, size: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """A server that says `size` bytes again and again: as a message, or as a part of its answer."""
    piece = bytes(1 << 16)

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if kind == "websocket":
                await answer_handshake(reader, writer)
            else:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                if kind == "websocket":
                    writer.write(b"\x82\x7f" + struct.pack("!Q", size))
                for _ in range(size // len(piece)):
                    writer.write(piece)
                    await writer.drain()
        except ConnectionError:
            pass  # cut, as it should be
        finally:
            writer.transport.abort()

    return serve_one


@pytest.mark.parametrize("kind", ["websocket", "http"])
async def test_of_many_that_read_nothing_the_oldest_are_cut(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    few = SlowClientGuard(limit=2, patience_s=0.0)
    monkeypatch.setattr(tunnel_sockets, "sending", few)
    monkeypatch.setattr(tunnel_http, "sending", few)
    monkeypatch.setattr(tunnel_sockets, "CLOSE_S", 0.1)
    await lab.fake.expose(lab.sandbox_id, PORT, protocol="http", public=True)
    async with lab.raw(floods(kind, MIB // 4)), AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(visitor(lab, kind))

        async def two_stand() -> bool:
            return carriers("_exchange") == 2

        await until(two_stand, "the others are cut", 30)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nobody comes by to break cycles, as it may be for long."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def large() -> int:
    """How many objects hold more than a MiB of bytes, whoever refers to them."""
    referents = (each for holder in gc.get_objects() for each in gc.get_referents(holder))
    return len({id(each) for each in referents if isinstance(each, bytes | bytearray) and len(each) > MIB})


@pytest.fixture
def two_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for two of the largest messages."""
    room = 2 * tunnel_sockets._COPIES * tunnel_sockets.MAX_MESSAGE // MIB
    monkeypatch.setattr(tunnel_sockets, "sending", SlowClientGuard(room, patience_s=0.0))
    monkeypatch.setattr(tunnel_sockets, "CLOSE_S", 0.1)


def unsent(lab: Lab) -> dict[object, int]:
    """The connections of visitors for whom a large message waits: how much of it."""
    sizes = {each: each.transport.get_write_buffer_size() for each in lab.connections}
    return {each: size for each, size in sizes.items() if size > MIB}


@asynccontextmanager
async def large_visitor(lab: Lab) -> AsyncIterator[RawSocket]:
    """A visitor for whom a message waits."""
    before = set(unsent(lab))

    async def more() -> bool:
        return bool(set(unsent(lab)) - before)

    async with visitor(lab, "websocket") as client:
        await until(more, "a message is on its way", 30)
        yield client


async def test_visitors_that_read_nothing_of_large_messages_fill_no_memory(
    lab: Lab, no_collector: None, two_messages: None
) -> None:
    """One comes after the other. Who is cut stays, but not what was meant for him."""
    others = large()

    async def two_hold() -> bool:
        return len(unsent(lab)) <= 2 and large() - others <= 2 * tunnel_sockets._COPIES

    await lab.fake.expose(lab.sandbox_id, PORT, protocol="http", public=True)
    async with lab.raw(floods("websocket", tunnel_sockets.MAX_MESSAGE)), AsyncExitStack() as stack:
        for _ in range(6):
            await stack.enter_async_context(large_visitor(lab))
        await until(two_hold, "what the others did not take is let go", 30)  # a machine may stand still for seconds


async def test_a_visitor_that_reads_large_messages_is_not_cut_for_those_that_do_not(
    lab: Lab, two_messages: None
) -> None:
    await lab.fake.expose(lab.sandbox_id, PORT, protocol="http", public=True)
    async with lab.raw(floods("websocket", tunnel_sockets.MAX_MESSAGE)), AsyncExitStack() as stack:
        reader = await stack.enter_async_context(large_visitor(lab))
        (connection,) = unsent(lab)
        while (await reader.reader.readexactly(2))[0] & 0x0F == PING:
            await reader.reader.readexactly(4)
        await reader.reader.readexactly(8)
        for _ in range(5):
            left = unsent(lab)[connection]

            async def taken(left: int = left) -> bool:
                return unsent(lab)[connection] <= left - MIB

            await reader.reader.readexactly(2 * MIB)
            await until(taken, "what was read was taken")
            await stack.enter_async_context(large_visitor(lab))
        await reader.reader.readexactly(tunnel_sockets.MAX_MESSAGE - 10 * MIB)
        while (following := await reader.message())[0] == PING:
            pass
        assert (following[0], len(following[1])) == (BINARY, tunnel_sockets.MAX_MESSAGE)


async def test_messages_that_are_never_finished_share_what_there_is(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel_sockets, "_unfinished", Budget(2 * MIB))
    more = asyncio.Event()
    sizes = iter((MIB, 3 * MIB))

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer_handshake(reader, writer)
            size = next(sizes)
            whole = b"\x82\x7f" + struct.pack("!Q", size) + bytes(size)
            writer.write(whole[:-1])
            await more.wait()
            writer.write(whole[-1:])
            await reader.read()
        finally:
            writer.transport.abort()

    await lab.fake.expose(lab.sandbox_id, PORT, protocol="http", public=True)
    async with lab.raw(slow):
        async with websocket(lab.url(), "") as modest, websocket(lab.url(), "") as greedy:
            assert await greedy.close_code() == 1011
            more.set()
            assert (await modest.message())[0] == BINARY
        await none_left()
