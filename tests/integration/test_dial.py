"""Ports inside a real sandbox without a network: reached by raw connections, and through exposed ports of the node."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.model import grants
from shoal.model.ids import CONTROLLER, NAMESPACE
from shoal.wire.dial import dial
from tests.cluster import Cluster
from tests.processes import actor_names, actor_pid, eventually, kill, kill_relay

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

TCP_SERVER = """
    import socket, threading
    def serve(conn):
        # Echoes what comes until its end, and then says how much that was.
        total = 0
        while data := conn.recv(65536):
            total += len(data)
            conn.sendall(data)
        conn.sendall(b"|%d" % total)
        conn.close()
    server = socket.create_server(("127.0.0.1", 7000))
    print("ready", flush=True)
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


@pytest.fixture(scope="module")
def sandbox(cluster: Cluster) -> Iterator[shoal.Sandbox]:
    """One with a web server on port 8080 and a raw one on 7000, both on its loopback, and no network."""
    with shoal.Sandbox.create(network="none", timeout=600) as sandbox:
        sandbox.files.write_text("/www/index.html", "hello from inside")
        sandbox.files.write_text("/tcp.py", textwrap.dedent(TCP_SERVER))
        sandbox.exec("python3", "-m", "http.server", "8080", "--bind", "127.0.0.1", "--directory", "/www")
        assert sandbox.exec("python3", "/tcp.py").stdout.read(6) == "ready\n"
        sandbox.run(
            "until python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8080))'; do sleep 0.1; done"
        )
        yield sandbox


def wait_for_port(sandbox: shoal.Sandbox, port: int) -> None:
    connect = f"import socket; socket.create_connection(('127.0.0.1', {port}))"
    assert sandbox.run(f'until python3 -c "{connect}"; do sleep 0.1; done', timeout=20).returncode == 0


def actor(name: str, method: str, *args: Any) -> Any:
    import ray

    return ray.get(getattr(ray.get_actor(name, namespace=NAMESPACE), method).remote(*args), timeout=30)


def node(method: str, *args: Any) -> Any:
    (name,) = actor_names("node-")
    return actor(name, method, *args)


def grant_of(sandbox: shoal.Sandbox) -> grants.Grant:
    grant: grants.Grant = actor(CONTROLLER, "call", "grant", (sandbox.id,))
    return grant


def token_for(cluster: Cluster, sandbox: shoal.Sandbox, port: int | None) -> str:
    """A token for tunnels only, signed as the cluster does it."""
    secret = Path(cluster.file.secret_path).read_bytes()
    key = node("container_of", sandbox.id).key
    return grants.sign(secret, sandbox.id, key, (grants.SCOPE_TUNNEL,), time.time() + 60, port=port)


async def say(address: str, token: str, port: int, words: bytes) -> bytes:
    """Sends the words and an end, and returns what comes until the other end."""
    reader, writer = await dial(address, token, port)
    try:
        writer.write(words)
        writer.write_eof()
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


def say_exposed(address: str, words: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(words)
        with contextlib.suppress(OSError):  # reset already: reading tells
            sock.shutdown(socket.SHUT_WR)
        heard = b""
        while data := sock.recv(65536):
            heard += data
        return heard


def refuses(address: str) -> bool:
    """Whether nobody listens there: not that who does hangs up."""
    try:
        say_exposed(address, b"")
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def test_a_web_server_without_a_network(sandbox: shoal.Sandbox) -> None:
    grant = grant_of(sandbox)
    page = asyncio.run(say(grant.address, grant.token, 8080, b"GET / HTTP/1.0\r\n\r\n"))
    assert page.startswith(b"HTTP/1.0 200")
    assert page.endswith(b"hello from inside")


def test_half_closes_are_kept(sandbox: shoal.Sandbox) -> None:
    grant = grant_of(sandbox)
    words = bytes(range(256)) * 4096
    assert asyncio.run(say(grant.address, grant.token, 7000, words)) == words + b"|%d" % len(words)


def test_a_port_with_nobody(sandbox: shoal.Sandbox) -> None:
    grant = grant_of(sandbox)
    with pytest.raises(shoal.Unavailable, match="nothing listens on port 9999"):
        asyncio.run(dial(grant.address, grant.token, 9999))


def test_a_token_for_another_port(cluster: Cluster, sandbox: shoal.Sandbox) -> None:
    address = grant_of(sandbox).address
    assert asyncio.run(say(address, token_for(cluster, sandbox, 7000), 7000, b"x")) == b"x|1"
    with pytest.raises(shoal.PermissionDenied, match="port 8080"):
        asyncio.run(dial(address, token_for(cluster, sandbox, 8080), 7000))


def test_exposed_ports(cluster: Cluster, sandbox: shoal.Sandbox) -> None:
    public = node("expose", sandbox.id, 7000, False)
    private = node("expose", sandbox.id, 8080, True)
    assert node("expose", sandbox.id, 7000, False) == public
    assert say_exposed(public, b"hello") == b"hello|5"
    get = b"GET / HTTP/1.0\r\n\r\n"
    assert say_exposed(private, token_for(cluster, sandbox, 8080).encode() + b"\n" + get).endswith(b"hello from inside")
    for refused in (get, token_for(cluster, sandbox, 7000).encode() + b"\n" + get):
        with pytest.raises(ConnectionError):
            say_exposed(private, refused)
    node("unexpose", sandbox.id, 7000)
    node("unexpose", sandbox.id, 8080)
    for address in (public, private):
        with pytest.raises(ConnectionRefusedError):
            say_exposed(address, b"")


@pytest.mark.long
def test_exposed_ports_survive_relay_and_node(cluster: Cluster, sandbox: shoal.Sandbox) -> None:
    address = node("expose", sandbox.id, 7000, False)

    def answers() -> bool:
        try:
            return say_exposed(address, b"hello") == b"hello|5"
        except OSError:
            return False

    try:
        kill_relay()
        eventually(answers, what="the port is there again")
        kill(actor_pid(actor_names("node-")[0]))
        kill_relay()
        eventually(answers, what="the port is there again without the node actor that opened it")
    finally:
        eventually(lambda: unexposed(sandbox), what="the node takes calls again")
    with pytest.raises(ConnectionRefusedError):
        say_exposed(address, b"")


def unexposed(sandbox: shoal.Sandbox) -> bool:
    import ray

    try:
        node("unexpose", sandbox.id, 7000)
    except (ray.exceptions.RayError, shoal.Unavailable, ValueError):
        return False
    return True


def test_a_sandbox_that_ends_takes_its_ports_with_it(cluster: Cluster) -> None:
    with shoal.Sandbox.create(network="none") as sandbox:
        address = node("expose", sandbox.id, 7000, False)
        with pytest.raises(ConnectionError):  # nobody listens inside
            say_exposed(address, b"hello")
    eventually(lambda: refuses(address), what="the port is closed")


def test_an_open_tunnel_keeps_a_sandbox_from_being_idle(cluster: Cluster) -> None:
    async def stay(sandbox: shoal.Sandbox, until_then: shoal.Process[str]) -> None:
        grant = grant_of(sandbox)
        _, writer = await dial(grant.address, grant.token, 7000)
        try:
            await until_then.kill.aio()
            await asyncio.sleep(4)  # longer than the sandbox may be idle: nothing moves, and that is the test
            assert await sandbox.poll.aio() is None
        finally:
            writer.close()

    with shoal.Sandbox.create(
        "python3", "-c", textwrap.dedent(TCP_SERVER), network="none", idle_timeout=2.0
    ) as sandbox:
        until_then = sandbox.exec("sleep", "600")  # it may take longer than the sandbox may be idle
        wait_for_port(sandbox, 7000)
        asyncio.run(stay(sandbox, until_then))
        sandbox.wait(timeout=20)
        assert sandbox.info().reason == "idle_timeout"
