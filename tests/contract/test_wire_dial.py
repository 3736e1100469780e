"""Raw connections to ports in a sandbox, through a real relay and a real agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from shoal.model import errors, grants
from shoal.wire.connection import Connection
from shoal.wire.dial import dial, open_channel
from shoal.wire.frames import Kind, encode
from tests.contract.relay_fixture import SCOPES, AgentLab, agent_lab
from tests.contract.wire_peer import Peer, serving
from tests.ports import silent_port

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
TUNNEL = (grants.SCOPE_TUNNEL,)
OVER_BOTH = pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says how much came, once it has all come."""
    total = 0
    while data := await reader.read(1 << 20):
        total += len(data)
    writer.write(f"{total}".encode())
    await writer.drain()


@asynccontextmanager
async def inside(serve: Serve) -> AsyncIterator[int]:
    """A server where the sandbox's would be: the agents of these tests share our network. Gives its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()


async def connections(a_bed: AgentLab) -> int:
    return int((await a_bed.relay.ask({"op": "info"}))["connections"])


async def none_left(a_bed: AgentLab) -> None:
    for _ in range(500):
        if await connections(a_bed) == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a connection is left open")


@OVER_BOTH
async def test_bytes_go_both_ways_and_ends_are_passed_on(tls: bool) -> None:
    async with agent_lab(tls=tls) as a_bed, inside(echo) as port:
        reader, writer = await dial(a_bed.relay.address, a_bed.token(scopes=TUNNEL), port)
        sent = bytes(range(256)) * 8192
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == sent
        writer.close()
        await none_left(a_bed)


@OVER_BOTH
async def test_the_client_may_end_first_and_still_hear(tls: bool) -> None:
    async with agent_lab(tls=tls) as a_bed, inside(count) as port:
        reader, writer = await dial(a_bed.relay.address, a_bed.token(scopes=TUNNEL), port)
        writer.write(b"x" * 300_000)
        writer.write_eof()
        assert await reader.read() == b"300000"
        writer.close()
        await none_left(a_bed)


async def test_the_server_may_end_first_and_still_hear() -> None:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        heard.set_result(await reader.read())

    for tls in (False, True):
        heard = asyncio.get_running_loop().create_future()
        async with agent_lab(tls=tls) as a_bed, inside(leave) as port:
            reader, writer = await dial(a_bed.relay.address, a_bed.token(scopes=TUNNEL), port)
            assert await reader.read() == b"bye"
            writer.write(b"still here")
            writer.write_eof()
            assert await asyncio.wait_for(heard, 10) == b"still here"
            writer.close()
            await none_left(a_bed)


async def test_over_tls_from_uvloop_as_the_apis_replicas_do() -> None:
    """Its transports are no subclasses of asyncio's."""

    async def from_there(address: str, token: str, port: int) -> bytes:
        (await Connection.open(address, token, wait_s=5)).abort()
        _, channel = await open_channel(address, token)
        channel.transport.abort()
        reader, writer = await dial(address, token, port)
        writer.write(b"x" * 300_000)
        writer.write_eof()
        heard = await reader.read()
        writer.transport.abort()
        return heard

    async with agent_lab(tls=True) as a_bed, inside(count) as port:
        token = a_bed.token(scopes=(*SCOPES, *TUNNEL))
        calls = from_there(a_bed.relay.address, token, port)
        assert await asyncio.to_thread(uvloop.run, calls) == b"300000"
        await none_left(a_bed)


async def test_over_tls_a_break_is_no_end() -> None:
    async with agent_lab(tls=True) as a_bed, inside(echo) as port:
        reader, writer = await dial(a_bed.relay.address, a_bed.token(scopes=TUNNEL), port)
        await a_bed.relay.kill()
        with pytest.raises(ConnectionError):
            await reader.read()
        writer.close()


async def test_over_tls_no_other_certificate_is_accepted() -> None:
    """Whoever answers gets nothing, the token least of all."""
    async with agent_lab(tls=True) as a_bed, inside(echo) as port:
        wrong = grants.endpoint(a_bed.relay.listens, "0" * 64)
        for opening in (
            dial(wrong, a_bed.token(scopes=TUNNEL), port),
            open_channel(wrong, a_bed.token()),
            Connection.open(wrong, a_bed.token()),
        ):
            with pytest.raises(errors.Unavailable) as caught:
                await opening
            assert caught.value.fields["fingerprint"] == a_bed.relay.fingerprint
        await none_left(a_bed)
    for bad in ("tls://127.0.0.1:80", "tls://00@127.0.0.1:80", f"tls://{'0' * 64}@127.0.0.1"):
        with pytest.raises(errors.InvalidRequest):
            await dial(bad, "token", 80)


async def test_who_speaks_no_tls_and_who_does_tell_each_other_apart() -> None:
    async with agent_lab() as clear, agent_lab(tls=True) as secure:
        for address in (grants.endpoint(clear.relay.listens, "0" * 64), secure.relay.listens):
            for opening in (dial(address, "token", 80), Connection.open(address, "token")):
                with pytest.raises(errors.Unavailable):
                    await opening


@OVER_BOTH
async def test_a_server_that_does_not_read_holds_the_client_back(tls: bool) -> None:
    """What lies between them is bounded: the kernel's buffers, and nobody's memory."""
    go_on = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        await count(reader, writer)

    async with agent_lab(tls=tls) as a_bed, inside(slow) as port:
        reader, writer = await dial(a_bed.relay.address, a_bed.token(scopes=TUNNEL), port)
        before = a_bed.rss()
        size = 64 << 20
        writer.write(bytes(size))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await writer.drain()
        assert a_bed.rss() - before < 4 << 20
        go_on.set()
        writer.write_eof()
        assert await reader.read() == f"{size}".encode()
        writer.close()


async def test_refusals() -> None:
    async with agent_lab() as a_bed, inside(echo) as port:
        address, token = a_bed.relay.address, a_bed.token(scopes=TUNNEL)
        with pytest.raises(errors.Unauthenticated):
            await dial(address, a_bed.token(ttl_s=-1, scopes=TUNNEL), port)
        with pytest.raises(errors.PermissionDenied):
            await dial(address, a_bed.token(scopes=(grants.SCOPE_EXEC,)), port)
        with pytest.raises(errors.NotFound):
            await dial(address, a_bed.token(scopes=TUNNEL, key="c-other"), port)
        with silent_port() as silent, pytest.raises(errors.Unavailable) as caught:
            await dial(address, token, silent)
        assert caught.value.fields["port"] == silent
        for wrong in (0, 65536, -1):
            with pytest.raises(errors.InvalidRequest):
                await dial(address, token, wrong)
        await none_left(a_bed)
        await a_bed.relay.kill()
        with pytest.raises(errors.Unavailable):
            await dial(address, token, port)


async def test_a_token_is_good_at_no_other_nodes_relay_and_for_no_other_sandbox() -> None:
    async with agent_lab() as a_bed, agent_lab(secret=a_bed.relay.secret) as other, inside(echo) as port:
        token, wanted = a_bed.token(scopes=(*SCOPES, *TUNNEL)), other.token(scopes=(*SCOPES, *TUNNEL))
        forged = f"{wanted.partition('.')[0]}.{token.partition('.')[2]}"  # names the other's, with its own signature
        for address, shown, error in (
            (other.relay.address, token, errors.NotFound),
            (other.relay.address, forged, errors.Unauthenticated),
            (a_bed.relay.address, wanted, errors.NotFound),
        ):
            for knock in (dial(address, shown, port), Connection.open(address, shown, wait_s=0.1)):
                with pytest.raises(error):
                    await knock
        await none_left(other)


async def test_a_token_for_one_port() -> None:
    async with agent_lab() as a_bed, inside(echo) as port, inside(echo) as other:
        token = grants.sign(a_bed.relay.secret, "sb-test", a_bed.key, TUNNEL, 1 << 40, port=port)
        _, writer = await dial(a_bed.relay.address, token, port)
        writer.close()
        with pytest.raises(errors.PermissionDenied):
            await dial(a_bed.relay.address, token, other)
    with pytest.raises(ValueError, match="port"):
        grants.sign(b"x" * 32, "sb-test", "c-1", TUNNEL, 0, port=0)


async def test_a_cancelled_dial_leaves_nothing() -> None:
    silent = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(Kind.HELLO, 0, {"v": 1, "ok": True})
        silent.set()
        assert await peer.reader.read() == b""

    async with serving(script, admit=False) as address:
        task = asyncio.create_task(dial(address, "token", 80))
        await silent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", errors.Internal),
        (encode(Kind.HELLO, 0, b"not json"), errors.Internal),
        (encode(Kind.HELLO, 0, b" " * 100_000), errors.Internal),
        (encode(Kind.HELLO, 0, b'{"v":1,"error":{"code":"unavailable","message":"nobody"}}'), errors.Unavailable),
        (encode(Kind.HELLO, 0, b'{"v":1,"error":{"code":"quota_exceeded","message":"many"}}'), errors.QuotaExceeded),
        (encode(Kind.HELLO, 0, b'{"v":1,"error":{"code":"unauthenticated","message":"lies"}}'), errors.Internal),
        (encode(Kind.REPLY, 1, b'{"ok":{}}'), errors.Internal),
        (b"", errors.Unavailable),
    ],
)
async def test_agents_that_lie(answer: bytes, expected: type[errors.ShoalError]) -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(Kind.HELLO, 0, {"v": 1, "ok": True})
        await peer.raw(answer)

    async with serving(script, admit=False) as address:
        with pytest.raises(errors.ShoalError) as caught:
            await dial(address, "token", 80)
    assert type(caught.value) is expected


async def test_an_agent_that_never_answers() -> None:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.reader.read()

    async with serving(script, admit=False) as address:
        with pytest.raises(errors.DeadlineExceeded):
            await dial(address, "token", 80, wait_s=0, timeout_s=0.2)
