"""uvicorn's WebSockets as replicas have them: what strangers send, what stalls, and who has gone. Intervals are shortened, nothing else."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from shoal.cluster.api.processes.websockets import GONE, TAKEN
from shoal.cluster.serving import websockets
from shoal.cluster.serving.websockets import OPTIONS, ReplicaSockets
from tests.api import Api, serving
from tests.contract.api.lab import until
from tests.contract.api.rawsocket import BINARY, PING, RawSocket, frame, websocket
from tests.unit.api.raw import exchange, problem
from tests.unit.api.tunnel_lab import QuietServer

pytestmark = pytest.mark.slow  # seconds for all of it

MIB = 1 << 20
PONG = 10
OFTEN = {"ws_ping_interval": 0.05, "ws_ping_timeout": 0.05}
HANDSHAKE = {
    "Host": "x",
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


@asynccontextmanager
async def served(app: Any, **options: Any) -> AsyncIterator[str]:
    """The URL of a server of `app` with the options of replicas, and `options`."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        settings = {**OPTIONS, "log_level": "critical", "lifespan": "off", "timeout_graceful_shutdown": 1, **options}
        server = QuietServer(uvicorn.Config(app, **settings))
        running = asyncio.create_task(server.serve([listening]))
        while not server.started:
            assert not running.done()
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/x"
        finally:
            server.should_exit = True
            await running


async def accept(receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})


async def takes_nothing(scope: Any, receive: Any, send: Any) -> None:
    """An application whose sandbox takes nothing: it never asks for a message."""
    await accept(receive, send)
    await asyncio.Event().wait()


async def echoes(scope: Any, receive: Any, send: Any) -> None:
    await accept(receive, send)
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": message["bytes"]})


def handshake(path: str = "/v1/x", method: str = "GET", body: bytes = b"", **more: str | None) -> bytes:
    """A request that wants to be a WebSocket. `more`: headers by their names with `_` for `-`; None leaves one out."""
    headers = {**HANDSHAKE, **{name.replace("_", "-"): value for name, value in more.items()}}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items() if value is not None)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with serving() as running:
        yield running


class TestHandshakes:
    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            (handshake(body=b"ab", Content_Length="2"), 400),
            (handshake(body=b"0\r\n\r\n", Transfer_Encoding="chunked"), 400),
            (handshake(A="a" * 9000), 431),
            (handshake(**{f"A{n}": "b" for n in range(130)}), 431),
            (handshake("/" + "x" * 9000), 414),
            (handshake(method="POST"), 405),
            (handshake(Sec_WebSocket_Key=None), 400),
            (handshake(Sec_WebSocket_Key="AAAA"), 400),
            (handshake(Sec_WebSocket_Version="12"), 400),
        ],
        ids=["length", "chunked", "long header", "many headers", "long URL", "POST", "no key", "wrong key", "version"],
    )
    def test_a_malformed_one_is_answered_and_ended(self, api: Api, request_: bytes, status: int) -> None:
        said = exchange(api.port, request_.replace(b"Host: x", b"Host: x\r\nX-Request-Id: run-7"))
        told = problem(said)
        assert (told["status"], told["request_id"]) == (status, "run-7")
        assert said.startswith(b"HTTP/1.1 %d " % status)
        assert b"x-request-id: run-7\r\n" in said.lower()

    def test_one_of_another_method_is_told_the_right_one(self, api: Api) -> None:
        said = exchange(api.port, handshake(method="POST"))
        assert problem(said)["detail"] == "the method is not allowed here; use GET"
        assert b"\r\nallow: get\r\n" in said.lower()

    def test_a_request_id_is_made_where_there_is_none(self, api: Api) -> None:
        told = problem(exchange(api.port, handshake(body=b"ab", Content_Length="2", X_Request_Id="a b")))
        assert len(told["request_id"]) == 20

    def test_a_proper_one_is_left_to_the_application(self, api: Api) -> None:
        told = problem(exchange(api.port, handshake("/v1/sandboxes/sb-none/connect")))
        assert (told["status"], told["code"]) == (401, "unauthenticated")


def memory() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) << 10


@pytest.mark.anyio
async def test_a_flood_of_pings_from_who_reads_nothing_fills_no_memory() -> None:
    flood = frame(PING, bytes(125)) * 2000
    async with served(takes_nothing) as url, websocket(url, "", receive_buffer=1 << 14) as client:
        sock = client.writer.get_extra_info("socket")
        os.set_blocking(client_fd := os.dup(sock.fileno()), False)
        try:
            before = memory()
            for _ in range(16 * MIB // len(flood)):
                await _write(client_fd, flood)
            grown = memory() - before
        finally:
            os.close(client_fd)
        assert grown < 6 * MIB, grown / MIB
        # What waits is read, and from then on its pings are answered again.
        for number in range(1000):
            await client.send(frame(PING, b"%d" % number))
            if await _next_short(client) is not None:
                break
        else:
            raise AssertionError("no ping is answered any more")


async def _write(fd: int, data: bytes) -> None:
    """All of `data`, past any buffer of ours."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            await asyncio.sleep(0.001)
        else:
            await asyncio.sleep(0)


async def _next_short(client: RawSocket) -> bytes | None:
    """The next pong that answers no ping of the flood's, out of a thousand frames."""
    for _ in range(1000):
        opcode, data = await client.message()
        if opcode == PONG and len(data) < 125:
            return data
    return None


@pytest.mark.anyio
async def test_who_waits_for_the_sandbox_to_take_what_it_said_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websockets, "SILENCE_S", 0.0)
    async with served(takes_nothing, **OFTEN) as url, websocket(url, "") as client:
        for _ in range(3):
            await client.send(frame(BINARY, b"x" * 1000))
        for _ in range(5):
            opcode, data = await client.message()
            assert opcode == PING, (opcode, data)
            await client.send(frame(PONG, data))


class Patient(ReplicaSockets):
    """Sets `asked` once it has borne five missing pongs."""

    asked: asyncio.Event
    left = 5

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.left -= 1
        if not self.left:
            type(self).asked.set()


@pytest.mark.anyio
async def test_who_reads_slowly_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websockets, "SILENCE_S", 0.0)
    Patient.asked = asyncio.Event()
    size = 32 * MIB  # more than kernels keep

    async def much(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        await send({"type": "websocket.send", "bytes": bytes(size)})
        await send({"type": "websocket.close"})

    async with served(much, ws=Patient, **OFTEN) as url, websocket(url, "", receive_buffer=1 << 14) as client:
        await asyncio.wait_for(Patient.asked.wait(), 20)
        got = await client.message()
        assert (got[0], len(got[1])) == (BINARY, size)
        assert await client.close_code() == 1000


@pytest.mark.anyio
async def test_who_answers_nothing_for_long_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websockets, "SILENCE_S", 3600.0)
    async with served(echoes, **OFTEN) as url, websocket(url, "") as client:
        for _ in range(3):
            assert (await client.message())[0] == PING  # one missing pong is not enough
        monkeypatch.setattr(websockets, "SILENCE_S", 0.0)
        assert await asyncio.wait_for(client.close_code(), 10) == 1011


@pytest.mark.anyio
async def test_the_application_learns_that_its_client_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it asks for no message, and messages wait."""
    learnt = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        await scope["extensions"][GONE].wait()
        learnt.set()

    async with served(app, **OFTEN) as url:
        async with websocket(url, "") as client:
            for _ in range(40):
                await client.send(frame(BINARY, bytes(100_000)))
        await asyncio.wait_for(learnt.wait(), 10)


@pytest.mark.anyio
async def test_a_message_is_sent_once_it_is_taken() -> None:
    sent = asyncio.Event()
    size = 32 * MIB

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        await send({"type": "websocket.send", "bytes": bytes(size)})
        sent.set()
        await receive()

    async with served(app) as url, websocket(url, "", receive_buffer=1 << 14) as client:
        await asyncio.wait_for(client.reader.readexactly(10), 10)
        assert not sent.is_set()
        await asyncio.wait_for(client.reader.readexactly(size), 30)
        await asyncio.wait_for(sent.wait(), 10)


@pytest.mark.anyio
async def test_the_application_learns_how_much_its_client_has_taken() -> None:
    """Bytes that pass, and not those that kernels keep."""
    told: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        told.append(scope["extensions"][TAKEN])
        await send({"type": "websocket.send", "bytes": bytes(32 * MIB)})
        await receive()

    async with served(app) as url, websocket(url, "", receive_buffer=1 << 14) as client:
        await asyncio.wait_for(client.reader.readexactly(10), 10)
        before = told[0]()

        async def taken() -> bool:
            return 12 * MIB <= told[0]() - before <= 16 * MIB

        assert before < MIB, before
        await asyncio.wait_for(client.reader.readexactly(16 * MIB), 30)
        await until(taken, "what was read counts as taken")


@pytest.mark.anyio
async def test_what_was_given_up_is_let_go() -> None:
    """Though the client, who takes nothing, stays."""
    gone: list[asyncio.Event] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        gone.append(scope["extensions"][GONE])
        with suppress(TimeoutError):
            await asyncio.wait_for(send({"type": "websocket.send", "bytes": bytes(32 * MIB)}), 0.1)

    async with served(app) as url, websocket(url, "", receive_buffer=1 << 14):
        await asyncio.wait_for(gone[0].wait(), 10)


def test_uvicorn_is_as_replicas_need_it() -> None:
    """What `ReplicaSockets` changes or goes by. Where this fails for a new uvicorn, see how that does it, and change both."""
    config = uvicorn.Config(takes_nothing)
    config.load()
    assert config.ws_protocol_class is WebSocketsSansIOProtocol, "uvicorn speaks WebSockets by something else now"
    changed = {
        *("data_received", "handle_connect", "handle_ping", "keepalive_timeout"),
        *("send", "on_task_complete", "connection_lost"),
    }
    used = {"schedule_ping"}
    assert changed | used <= set(vars(WebSocketsSansIOProtocol)), "uvicorn has other methods now"
    code = WebSocketsSansIOProtocol.__init__.__code__
    state = {
        *("conn", "config", "loop", "writable", "read_paused", "close_sent", "transport"),
        *("handshake_initiated", "handshake_complete", "pong_timer", "pending_ping_payload"),
    }
    assert state <= set(code.co_names), "uvicorn keeps its state by other names now"
    assert "scope" in WebSocketsSansIOProtocol.handle_connect.__code__.co_names
    assert "response" in WebSocketsSansIOProtocol.handle_connect.__code__.co_names
