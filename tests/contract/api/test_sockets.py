"""WebSockets into a sandbox, through a real relay and a real agent: attached processes, spliced connections."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from shoal.cluster.api.processes import attach, websockets
from shoal.model import verbs
from shoal.wire.frames import Decoder, Kind, encode
from tests.contract.api.lab import Lab, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
Socket = aiohttp.ClientWebSocketResponse


class Attached:
    """A client's end of an attachment."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.streams = {1: b"", 2: b""}
        self.said: list[dict[str, Any]] = []

    @property
    def started(self) -> dict[str, Any]:
        return self.said[0]

    async def take(self) -> bool:
        """Takes a message; False at the end."""
        message = await self.socket.receive(20)
        if message.type is aiohttp.WSMsgType.BINARY:
            self.streams[message.data[0]] += message.data[1:]
        elif message.type is aiohttp.WSMsgType.TEXT:
            self.said.append(json.loads(message.data))
        else:
            assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING)
            return False
        return True

    async def until(self, stdout: bytes) -> None:
        while stdout not in self.streams[1]:
            assert await self.take(), (self.streams, self.said)

    async def rest(self) -> dict[str, Any]:
        """Takes all that comes; the last that was said."""
        while await self.take():
            pass
        return self.said[-1]

    async def write(self, data: bytes) -> None:
        await self.socket.send_bytes(b"\0" + data)


@asynccontextmanager
async def attached(place: Lab, **first: Any) -> AsyncIterator[Attached]:
    async with place.http.ws_connect(f"{place.at}/attach", max_msg_size=0) as socket:
        await socket.send_json(first)
        client = Attached(socket)
        await client.take()
        yield client


# attach


async def test_a_process_from_start_to_end(place: Lab) -> None:
    async with attached(place, command="echo out; echo err >&2; cat; exit 7", env={"A": "b"}) as client:
        assert client.started["type"] == "started"
        assert client.started["pid"] > 0
        await client.until(b"out\n")
        await client.write(b"hello")
        await client.until(b"hello")
        await client.socket.send_json({"type": "eof"})
        assert await client.rest() == {"type": "exit", "returncode": 7, "timed_out": False}
        assert client.streams == {1: b"out\nhello", 2: b"err\n"}
        assert sorted(m["stream"] for m in client.said if m["type"] == "end") == ["stderr", "stdout"]
        assert client.socket.close_code == 1000


async def test_signals_and_a_terminal(place: Lab) -> None:
    async with attached(place, argv=["bash", "--norc"], pty={"rows": 20, "cols": 70}, env={"PS1": "$ "}) as client:
        await client.until(b"$ ")
        await client.write(b"echo $((1+1)) && stty size\n")
        await client.until(b"echo $((1+1)) && stty size\r\n")  # the terminal's echo
        await client.until(b"2\r\n20 70\r\n")
        await client.socket.send_json({"type": "resize", "rows": 30, "cols": 90})
        await client.write(b"stty size\n")
        await client.until(b"30 90\r\n")
        await client.write(b"sh -c 'printf rea; printf dy; exec sleep 100'\n")
        await client.until(b"ready")
        await client.write(b"\x03")
        await client.write(b"exit 3\n")
        assert (await client.rest())["returncode"] == 3
    async with attached(place, command="echo on; sleep 100") as client:
        await client.until(b"on\n")
        await client.socket.send_json({"type": "signal", "signal": "TERM", "tree": True})
        assert (await client.rest())["returncode"] == -15


async def test_a_client_that_is_cut_off_comes_back(place: Lab) -> None:
    async with attached(place, command="echo one; cat; echo end") as client:
        await client.until(b"one\n")
        await client.write(b"two\n")
        await client.until(b"two\n")
        process = client.started["id"]
        # In the midst of a frame: five bytes are announced, two come.
        connection = client.socket.get_extra_info("socket")
        transport = client.socket._response.connection.transport  # type: ignore[union-attr]
        assert connection is not None
        transport.write(b"\x82\x85\0\0\0\0\0x")
        transport.abort()

    async def let_go() -> bool:
        return await place.open_streams() == 0

    await until(let_go, "the first attachment is over")
    seen = len(client.streams[1])
    async with attached(place, id=process, stdout_offset=seen, stderr_offset=0, stdin_offset=0) as again:
        assert again.started == {
            "type": "started",
            "id": process,
            "stdout_offset": seen,
            "stderr_offset": 0,
            "stdin_offset": 4,
        }
        await again.write(b"two\nthree\n")  # as it does not know what arrived
        await again.socket.send_json({"type": "eof"})
        assert (await again.rest())["returncode"] == 0
    assert client.streams[1] + again.streams[1] == b"one\ntwo\nthree\nend\n"
    async with attached(place, id=process) as late:  # of one that has ended too
        assert (await late.rest())["returncode"] == 0
        assert late.streams[1] == b"one\ntwo\nthree\nend\n"


async def test_a_process_waits_for_its_slow_client(place: Lab) -> None:
    async with attached(place, command="head -c 50000000 /dev/zero; echo end") as client:
        process = client.started["id"]
        async with place.http.get(f"{place.at}/processes/{process}/wait?timeout=0.5") as answer:
            assert (await answer.json())["running"]
        size = 0
        while (message := await client.socket.receive(20)).type is not aiohttp.WSMsgType.CLOSE:
            if message.type is aiohttp.WSMsgType.BINARY:
                size += len(message.data) - 1
            elif message.type is not aiohttp.WSMsgType.TEXT:
                break
    assert size == 50_000_004


async def test_a_process_that_does_not_read_holds_its_writer_up_and_still_hears_signals(place: Lab) -> None:
    async with attached(place, command="echo on; sleep 100") as client:
        await client.until(b"on\n")
        for _ in range(5):
            await client.write(b"x" * 250_000)
        await client.socket.send_json({"type": "signal", "signal": 9, "tree": True})
        assert (await client.rest())["returncode"] == -9


async def test_the_later_of_two_attached_writers_takes_over(place: Lab) -> None:
    async with attached(place, command="cat") as earlier:
        await earlier.write(b"a")
        await earlier.until(b"a")
        async with attached(place, id=earlier.started["id"], stdout_offset=1) as later:
            await later.write(b"b")
            await later.until(b"b")
            await earlier.write(b"c")
            while earlier.said[-1]["type"] != "stdin_closed":
                await earlier.take()
            assert earlier.said[-1]["problem"]["code"] == "failed_precondition"
            await earlier.write(b"d")
            await later.write(b"e")
            await earlier.until(b"abe")  # it goes on reading
            await later.socket.send_json({"type": "eof"})
            assert (await later.rest())["returncode"] == 0
        assert (await earlier.rest())["returncode"] == 0
        assert earlier.streams[1] == b"abe"


async def test_a_sandbox_that_ends_meanwhile(place: Lab) -> None:
    async with attached(place, command="echo on; cat") as client:
        await client.until(b"on\n")
        place.cluster.end(b"")
        assert (await client.rest())["problem"]["code"] == "sandbox_ended"
        assert client.socket.close_code == 1011


@pytest.mark.parametrize(
    ("first", "code", "field"),
    [
        ("nonsense", "invalid_request", "message"),
        ("[]", "invalid_request", "message"),
        ("{}", "invalid_request", "argv"),
        ('{"argv": []}', "invalid_request", "argv"),
        ('{"argv": ["true"], "pty": {"rows": 0, "cols": 1}}', "invalid_request", "pty.rows"),
        ('{"argv": ["true"], "other": 1}', "invalid_request", "other"),
        ('{"id": "p-none"}', "process_not_found", None),
        ('{"id": "../x"}', "invalid_request", "id"),
        ('{"id": "p-none", "stdout_offset": -1}', "invalid_request", "stdout_offset"),
        ('{"argv": ["no-such-program"]}', "command_not_found", "argv"),
        (b"\0bytes", "invalid_request", "message"),
        ("x" * ((1 << 20) - 100), "invalid_request", "message"),
    ],
)
async def test_a_wrong_beginning(place: Lab, first: str | bytes, code: str, field: str | None) -> None:
    async with place.http.ws_connect(f"{place.at}/attach") as socket:
        await (socket.send_str(first) if isinstance(first, str) else socket.send_bytes(first))
        said = await socket.receive_json(timeout=10)
        assert (said["type"], said["problem"]["code"]) == ("error", code)
        if field is not None:
            assert said["problem"]["field"] == field
        assert (await socket.receive(10)).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 1008


@pytest.mark.parametrize(
    "message",
    [
        "nonsense",
        "{}",
        '{"type": "x"}',
        '{"type": "resize"}',
        '{"type": "signal", "signal": 99}',
        b"",
        b"\1x",
        b"\0" * 300_000,
    ],
)
async def test_a_wrong_message_ends_the_attachment_and_not_the_process(place: Lab, message: str | bytes) -> None:
    async with attached(place, command="cat") as client:
        await (client.socket.send_str(message) if isinstance(message, str) else client.socket.send_bytes(message))
        said = await client.rest()
        assert (said["type"], said["problem"]["code"]) == ("error", "invalid_request")
        assert client.socket.close_code == 1008
    async with attached(place, id=client.started["id"], stdin_offset=0) as again:
        await again.socket.send_json({"type": "eof"})
        assert (await again.rest())["returncode"] == 0


async def test_a_client_that_says_nothing_is_not_waited_for(place: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "FIRST_S", 0.2)
    async with place.http.ws_connect(f"{place.at}/attach") as socket:
        assert (await socket.receive_json(timeout=20))["problem"]["code"] == "invalid_request"


async def test_who_may_not_is_refused_before_the_handshake(place: Lab) -> None:
    for way in ("attach", "connect", "ports/80"):
        async with aiohttp.ClientSession() as nobody:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await nobody.ws_connect(f"{place.at}/{way}")
        assert refused.value.status == 401
    async with aiohttp.ClientSession() as browser:
        protocols = ("shoal.v1", f"shoal.bearer.{place.token}")
        async with browser.ws_connect(f"{place.at}/attach", protocols=protocols) as socket:
            assert socket.protocol == "shoal.v1"


async def test_a_revoked_token_ends_what_it_opened(place: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websockets, "_RECHECK_S", 0.2)
    async with (
        attached(place, command="sleep 100") as client,
        place.http.ws_connect(f"{place.at}/connect") as connected,
    ):
        assert await connected.receive_json() == {"ok": True}
        await place.cluster.ask(verbs.revoke_token, place.token.split("_")[1])
        assert (await client.rest())["problem"]["code"] == "unauthenticated"
        assert (await connected.receive(10)).type is aiohttp.WSMsgType.CLOSE
        assert (client.socket.close_code, connected.close_code) == (4401, 4401)


# connect and ports


def frame(kind: Kind, stream: int, payload: dict[str, Any] | bytes) -> bytes:
    return encode(kind, stream, payload if isinstance(payload, bytes) else json.dumps(payload).encode())


async def frames(socket: Socket) -> AsyncIterator[tuple[Kind, int, bytes]]:
    decoder = Decoder()
    async for message in socket:
        assert message.type is aiohttp.WSMsgType.BINARY
        assert len(message.data) <= 256 << 10
        view = memoryview(message.data)
        while view:
            room = decoder.get_buffer()
            count = min(len(room), len(view))
            room[:count] = view[:count]
            for item in decoder.advance(count):
                yield item
            view = view[count:]


async def test_the_agents_frames_pass(place: Lab) -> None:
    async with place.http.ws_connect(f"{place.at}/connect", max_msg_size=0) as socket:
        assert await socket.receive_json() == {"ok": True}
        run = frame(Kind.OPEN, 1, {"op": "run", "id": "p-1", "argv": ["cat"], "stdin": True, "max_output": 10_000_000})
        data = b"".join(frame(Kind.DATA, 1, b"x" * 100_000) for _ in range(10))
        sent = run + data + frame(Kind.END, 1, b"")
        for at in range(0, len(sent), 99_991):  # cut anyhow
            await socket.send_bytes(sent[at : at + 99_991])
        got = 0
        async for kind, stream, payload in frames(socket):
            assert stream == 1
            if kind is Kind.DATA:
                got += len(payload)
                await socket.send_bytes(frame(Kind.CREDIT, 1, struct.pack(">I", len(payload))))
            elif kind is Kind.REPLY:
                assert json.loads(payload)["ok"]["exit"] == 0
                break
        assert got == 1_000_000


async def test_a_connection_ends_with_either_side(place: Lab) -> None:
    async with place.http.ws_connect(f"{place.at}/connect") as socket:
        assert await socket.receive_json() == {"ok": True}
        await socket.send_bytes(b"\xff" * 100)  # no frame: the agent hangs up
        assert (await socket.receive(10)).type is aiohttp.WSMsgType.CLOSE
    for wrong in ("text", b"x" * ((256 << 10) + 1)):
        async with place.http.ws_connect(f"{place.at}/connect") as socket:
            await socket.receive_json()
            await (socket.send_str(wrong) if isinstance(wrong, str) else socket.send_bytes(wrong))
            assert (await socket.receive(10)).type is aiohttp.WSMsgType.CLOSE
            assert socket.close_code == 1008
    async with place.http.ws_connect(f"{place.server.url}/v1/sandboxes/sb-none/connect") as socket:
        assert (await socket.receive_json())["error"]["code"] == "sandbox_not_found"


async def test_a_port(place: Lab) -> None:
    closed = asyncio.Event()

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data.upper())
                await writer.drain()
            writer.write(b"-bye")
            writer.write_eof()
        except ConnectionError:
            pass
        finally:
            writer.close()
            closed.set()

    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        async with place.http.ws_connect(f"{place.at}/ports/{port}", max_msg_size=0) as socket:
            assert await socket.receive_json() == {"ok": True}
            await socket.send_bytes(b"hello")
            assert (await socket.receive(10)).data == b"HELLO"

            async def much() -> None:
                for _ in range(100):
                    await socket.send_bytes(b"x" * 200_000)
                await socket.send_str('{"eof": true}')

            writing = asyncio.ensure_future(much())
            got = b""
            while (message := await socket.receive(20)).type is aiohttp.WSMsgType.BINARY:
                got += message.data
            await writing
            assert (len(got), got[-5:]) == (20_000_004, b"X-bye")
            assert json.loads(message.data) == {"eof": True}
            assert (await socket.receive(10)).type is aiohttp.WSMsgType.CLOSE
            assert socket.close_code == 1000
        closed.clear()
        async with place.http.ws_connect(f"{place.at}/ports/{port}") as socket:
            await socket.receive_json()
            await socket.send_bytes(b"hello")
            await socket.receive(10)
        await asyncio.wait_for(closed.wait(), 20)  # at once; but a machine may stand still for seconds
    async with place.http.ws_connect(f"{place.at}/ports/{port}") as socket:
        error = (await socket.receive_json())["error"]
        assert (error["code"], error["retryable"]) == ("unavailable", True)
    for wrong in ("0", "65536", "x", "99999999999999999999"):
        async with place.http.ws_connect(f"{place.at}/ports/{wrong}") as socket:
            assert (await socket.receive_json())["error"]["field"] == "port"


async def test_bytes_come_as_they_are_written(place: Lab) -> None:
    late = []
    async with attached(place, command="while read line; do date +%s%N; done") as client:
        for number in range(1, 31):
            await client.write(b"\n")
            while client.streams[1].count(b"\n") < number:
                await client.take()
            late.append(time.time_ns() - int(client.streams[1].split()[-1]))
    # Nothing waits on purpose, as for an acknowledgement (40 ms): a busy machine delays half of them and more, but
    # hardly three of four.
    assert sorted(late)[len(late) // 4] < 20_000_000, late
