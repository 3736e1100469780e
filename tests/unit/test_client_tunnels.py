"""A sandbox's ports, as the client offers them."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.request
from collections.abc import Iterator

import pytest

import shoal
from shoal.wire.bytestream import ByteStream
from tests.unit.client_lab import ClientLab


@pytest.fixture
def lab() -> Iterator[ClientLab]:
    lab = ClientLab()
    yield lab
    lab.client.close()


def test_tunnels_are_opened_listed_and_closed(lab: ClientLab) -> None:
    sandbox = lab.sandbox()
    private = sandbox.expose(8080)
    assert (private.port, private.protocol, private.public) == (8080, "http", False)
    assert private.token is not None
    assert private.link is not None
    assert private.link.startswith(f"{private.url}?shoal_token=")
    public = sandbox.expose(22, protocol="tcp", public=True)
    assert (public.token, public.link) == (None, None)
    assert [(t.port, t.token) for t in sandbox.tunnels()] == [(22, None), (8080, None)]
    later = sandbox.connect_token(8080, expires_in=7200)
    assert later.expires_at is not None
    assert private.expires_at is not None
    assert later.expires_at - private.expires_at > 3500
    sandbox.unexpose(22)
    sandbox.unexpose(22)
    assert [t.port for t in sandbox.tunnels()] == [8080]
    with pytest.raises(shoal.TunnelNotFound):
        sandbox.connect_token(22)


def test_a_forward_carries_connections_with_half_closes(lab: ClientLab) -> None:
    sandbox = lab.sandbox()
    with sandbox.forward(7) as forward:
        host, _, port = forward.address.rpartition(":")
        assert (host, int(port)) == ("127.0.0.1", forward.local_port)
        data = bytes(range(256)) * 8192
        with socket.create_connection((host, int(port)), 10) as there:
            sending = threading.Thread(target=lambda: (there.sendall(data), there.shutdown(socket.SHUT_WR)))
            sending.start()
            got = bytearray()
            while piece := there.recv(1 << 16):
                got += piece
            sending.join()
        assert bytes(got) == data
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), 10)
    forward.close()


def test_a_web_page_by_a_port_of_this_machine(lab: ClientLab) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with lab.sandbox().forward(8080) as forward:
        for _ in range(3):
            with opener.open(f"http://{forward.address}/x", timeout=10) as answer:
                assert answer.read().startswith(b"GET /x HTTP/1.1")


def test_what_cannot_be_forwarded_is_told(lab: ClientLab) -> None:
    sandbox = lab.sandbox()
    for port in (0, 65536, True, "80"):
        with pytest.raises(shoal.InvalidRequest) as wrong:
            sandbox.forward(port)  # type: ignore[arg-type]
        assert wrong.value.field == "port"
    with pytest.raises(shoal.InvalidRequest) as wrong:
        sandbox.forward(80, -1)
    assert wrong.value.field == "local_port"
    with sandbox.forward(7) as forward, pytest.raises(shoal.FailedPrecondition, match="local_port"):
        sandbox.forward(7, forward.local_port)
    with (
        sandbox.forward(9) as forward,
        pytest.raises(ConnectionResetError),
        socket.create_connection(("127.0.0.1", forward.local_port), 10) as there,
    ):
        there.recv(1)


def test_closing_ends_open_connections_from_any_thread(lab: ClientLab) -> None:
    forward = lab.sandbox().forward(7)
    with socket.create_connection(("127.0.0.1", forward.local_port), 10) as there:
        there.sendall(b"x")
        assert there.recv(1) == b"x"
        asyncio.run(forward.close.aio())  # a loop that is not its own
        there.settimeout(10)
        with pytest.raises(ConnectionResetError):
            there.recv(1)


def test_a_slow_reader_slows_the_sandbox(lab: ClientLab) -> None:
    sent = 0
    more = asyncio.Event()

    async def pour(stream: ByteStream) -> None:
        nonlocal sent
        for _ in range(400):
            await stream.write(b"x" * (256 << 10))
            sent += 256 << 10
        await stream.write_eof()
        more.set()

    async def run() -> None:
        sandbox = await shoal.Sandbox.create.aio(client=lab.client)
        async with await sandbox.forward.aio(1) as forward:
            reader, writer = await asyncio.open_connection("127.0.0.1", forward.local_port)
            await reader.readexactly(1)
            before = -1
            while sent != before:  # until it moves no more
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 50 << 20
            total = 1
            while data := await reader.read(1 << 20):
                total += len(data)
            assert total == 400 * (256 << 10)
            writer.close()
            await writer.wait_closed()

    lab.fake.ports[1] = pour
    asyncio.run(run())
