"""WebSockets to servers in a sandbox."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus
from websockets.frames import Close
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from shoal.cluster.api.tunnels import tunnel_sockets
from tests.unit.api.tunnel_lab import PORT, Lab, answer_handshake, opened, through

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # seconds for all of it


@pytest.fixture
async def lab(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Lab]:
    async with opened(tmp_path) as made:
        yield made


async def echo(socket: ServerConnection) -> None:
    async for message in socket:
        await socket.send(message)


@asynccontextmanager
async def serving(
    lab: Lab, handler: Callable[[ServerConnection], Awaitable[None]] = echo, **options: Any
) -> AsyncIterator[None]:
    async with serve(handler, "127.0.0.1", 0, max_size=None, **options) as server:
        lab.fake.ports[PORT] = through(next(iter(server.sockets)).getsockname()[1])
        yield


def connected(lab: Lab, path: str = "/", headers: dict[str, str] | None = None, **options: Any) -> connect:
    return connect(
        lab.url(path, scheme="ws"),
        additional_headers=lab.key if headers is None else headers,
        proxy=None,
        max_size=None,
        **options,
    )


async def closed(socket: ClientConnection) -> tuple[int, str]:
    """The code and the reason that the other side closes with."""
    async with asyncio.timeout(10):
        await socket.wait_closed()
    return socket.close_code or 0, socket.close_reason or ""


async def test_messages_pass_both_ways(lab: Lab) -> None:
    async with serving(lab), connected(lab) as socket:
        for message in ("grüße", b"\x00\xff" * 10, "", b"", "x" * (1 << 20), b"y" * (1 << 20)):
            await socket.send(message)
            assert await socket.recv() == message
        await socket.send(["in ", "pieces"])
        assert await socket.recv() == "in pieces"
        await (await socket.ping())


async def test_a_server_may_send_in_pieces_and_keeps_its_own_pings(lab: Lab) -> None:
    async def handler(socket: ServerConnection) -> None:
        await socket.send([b"a" * 10, b"b" * 10, b"c"])
        await (await socket.ping())
        await socket.send("ponged")
        await socket.wait_closed()

    async with serving(lab, handler), connected(lab) as socket:
        assert await socket.recv() == b"a" * 10 + b"b" * 10 + b"c"
        assert await socket.recv() == "ponged"


async def test_the_handshake_passes_on(lab: Lab) -> None:
    async def tell(socket: ServerConnection) -> None:
        assert socket.request is not None
        await socket.send(socket.request.path)
        await socket.send(repr(sorted((k.lower(), v) for k, v in socket.request.headers.raw_items())))

    def cookie(_: ServerConnection, __: Request, response: Response) -> Response:
        response.headers["Set-Cookie"] = "a=1; Path=/"
        return response

    wanted = [Subprotocol("chat.v2"), Subprotocol("chat.v1")]
    given = [Subprotocol("chat.v1")]
    async with serving(lab, tell, subprotocols=given, process_response=cookie):
        url = f"/a%20b?x=1&shoal_token={lab.token()}"
        async with connected(lab, url, headers={"X-Own": "1", "Cookie": "b=2"}, subprotocols=wanted) as socket:
            assert socket.subprotocol == "chat.v1"
            assert socket.response is not None
            assert socket.response.headers["Set-Cookie"] == f"a=1; Path=/t/{lab.sandbox_id}/{PORT}/"
            assert await socket.recv() == "/a%20b?x=1"
            seen = str(await socket.recv())
            assert f"('host', '{lab.api}')" in seen
            assert "('x-own', '1')" in seen
            assert "('cookie', 'b=2')" in seen
            assert "x-forwarded-proto" in seen
            assert "shoal" not in seen.replace(f"/t/{lab.sandbox_id}", "")


async def test_api_tokens_come_as_subprotocols(lab: Lab) -> None:
    async def tell(socket: ServerConnection) -> None:
        assert socket.request is not None
        await socket.send(socket.request.headers.get("Sec-WebSocket-Protocol", "none"))

    offered = [Subprotocol("shoal.v1"), Subprotocol(f"shoal.bearer.{await lab.api_token()}")]
    async with serving(lab, tell), connected(lab, headers={}, subprotocols=offered) as socket:
        assert socket.subprotocol == "shoal.v1"
        assert await socket.recv() == "none"


async def test_a_cookie_counts_only_from_the_tunnels_own_pages(lab: Lab) -> None:
    cookie = {"Cookie": f"shoal_tunnel={lab.token()}"}
    async with serving(lab):
        async with connected(lab, headers=cookie, origin=f"http://{lab.api}") as socket:
            await socket.send("in")
            assert await socket.recv() == "in"
        for origin in ("http://evil.example", f"https://{lab.api}", "null"):
            with pytest.raises(InvalidStatus) as refused:
                await connected(lab, headers=cookie, origin=origin)
            assert refused.value.response.status_code == 401


@pytest.mark.parametrize("code", [1000, 1001, 1011, 3000, 4999])
async def test_how_a_side_ends_is_passed_on(lab: Lab, code: int) -> None:
    ended: asyncio.Queue[Close | None] = asyncio.Queue()

    async def handler(socket: ServerConnection) -> None:
        if await socket.recv() == "you":
            await socket.close(code, "why")
        else:
            await socket.wait_closed()
            await ended.put(Close(socket.close_code or 0, socket.close_reason or ""))

    async with serving(lab, handler), asyncio.timeout(20):
        async with connected(lab) as socket:
            await socket.send("you")
            assert await closed(socket) == (code, "why")
        socket = await connected(lab)
        await socket.send("me")
        await socket.close(code, "because")
        assert await ended.get() == Close(code, "because")


async def test_a_side_that_vanishes_ends_the_other(lab: Lab) -> None:
    ended = asyncio.Event()

    async def handler(socket: ServerConnection) -> None:
        if await socket.recv() == "vanish":
            socket.transport.abort()
        else:
            await socket.wait_closed()
            ended.set()

    async with serving(lab, handler), asyncio.timeout(20):
        async with connected(lab) as socket:
            await socket.send("vanish")
            assert (await closed(socket))[0] == 1011
        socket = await connected(lab)
        await socket.send("stay")
        socket.transport.abort()
        await ended.wait()


async def test_a_server_that_wants_no_socket_says_so_itself(lab: Lab) -> None:
    def refuse(socket: ServerConnection, _: Request) -> Response:
        return socket.respond(418, "no sockets here\n")

    async with serving(lab, process_request=refuse):
        with pytest.raises(InvalidStatus) as refused:
            await connected(lab)
        assert refused.value.response.status_code == 418
        assert refused.value.response.body == b"no sockets here\n"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
        b"HTTP/1.1 100 Continue\r\nX: " + b"x" * 100_000,
        b"HTTP/1.1 199 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 700 Odd\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=lambda said: said[:20].decode(),
)
async def test_what_is_no_websocket_is_told_so(lab: Lab, said: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    async with lab.raw(handler), asyncio.timeout(10):
        with pytest.raises(InvalidStatus) as refused:
            await connected(lab)
        assert refused.value.response.status_code == 503
    lab.fake.ports.pop(PORT)
    with pytest.raises(InvalidStatus) as refused:
        await connected(lab)
    assert b"nothing listens" in (refused.value.response.body or b"")


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_interim_answers_before_the_handshake_are_passed_over(lab: Lab, size: int) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for start in range(0, len(interim), size):
                writer.write(interim[start : start + size])
                await asyncio.sleep(0)
            await answer_handshake(reader, writer)
            writer.write(b"\x81\x02hi\x88\x02\x03\xe8")
            await reader.read()
        finally:
            writer.transport.abort()

    async with lab.raw(handler), asyncio.timeout(20), connected(lab) as socket:
        assert await socket.recv() == "hi"
        assert await closed(socket) == (1000, "")


async def test_a_refusal_after_an_interim_answer_is_the_answer(lab: Lab) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 418 No\r\nContent-Length: 2\r\n\r\nno")
        writer.close()

    async with lab.raw(handler), asyncio.timeout(20):
        with pytest.raises(InvalidStatus) as refused:
            await connected(lab)
        assert (refused.value.response.status_code, refused.value.response.body) == (418, b"no")


async def test_messages_are_bounded_and_slow_readers_slow_the_server(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel_sockets, "MAX_MESSAGE", 1 << 20)
    piece = b"x" * 100_000
    sent = 0

    async def flood(socket: ServerConnection) -> None:
        nonlocal sent
        if await socket.recv() == "big":
            await socket.send(b"x" * (2 << 20))
        else:
            for _ in range(500):
                await socket.send(piece)
                sent += 100_000

    async with serving(lab, flood), asyncio.timeout(60):
        async with connected(lab) as socket:
            await socket.send("big")
            assert (await closed(socket))[0] == 1009
        async with connected(lab, max_queue=1, compression=None) as socket:
            await socket.send("flood")
            await socket.recv()
            before = -1
            while sent != before:  # until it moves no more
                before = sent
                await asyncio.sleep(0.3)
            assert 0 < sent < 40_000_000  # what sockets on the way hold; 50 MB were to come
            for _ in range(499):
                assert await socket.recv() == piece


async def test_a_flood_of_tiny_frames_lets_others_live(lab: Lab) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer_handshake(reader, writer)
        writer.write(b"\x89\x00" * 100_000)  # pings
        writer.write(b"\x82\x01x")
        try:
            while not (await reader.read(1 << 16)).startswith(b"\x88"):  # a close
                pass
        finally:
            writer.transport.abort()

    turns: list[float] = []  # seconds of the loop's own work between two looks, whatever else the machine does

    async def watch() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            turns.append(time.thread_time() - before)

    async with lab.raw(handler), asyncio.timeout(30), connected(lab) as socket:
        gc.disable()  # how long it takes is a matter of all that this process has ever done
        watching = asyncio.create_task(watch())
        try:
            assert await socket.recv() == b"x"
        finally:
            gc.enable()
            watching.cancel()
    assert max(turns) < sum(turns) / 5, (max(turns), sum(turns))
