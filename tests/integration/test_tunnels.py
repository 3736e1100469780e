"""Tunnels into sandboxes that have no network: a web server, a WebSocket echo, a raw TCP service, a real browser."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect
from websockets.typing import Subprotocol

import shoal
from tests.browser import browser
from tests.cluster import Cluster, printing
from tests.processes import actor_pid, eventually, kill

pytestmark = pytest.mark.engine

SERVER = Path(__file__).with_name("tunnel_server.py")
COMMAND = [sys.executable, "-m", "shoal.cli.main"]
WEB, RAW = 8080, 9000


@pytest.fixture(scope="module")
def served(cluster: Cluster) -> Iterator[shoal.Sandbox]:
    with started() as sandbox:
        yield sandbox


def started() -> shoal.Sandbox:
    """A sandbox without a network in which the services listen."""
    sandbox = shoal.Sandbox.create(network="none", timeout=600)
    sandbox.files.write_text("/server.py", SERVER.read_text("utf-8"))
    process = sandbox.exec("python3", "/server.py")
    assert next(iter(process.stdout)) == "ready\n"
    return sandbox


def ask(
    url: str, *, method: str = "GET", token: str | None = None, body: bytes | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if token is not None:
        sent["X-Shoal-Connect-Token"] = token
    try:
        connection.request(method, f"{parts.path}?{parts.query}" if parts.query else parts.path, body, sent)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def code(answer: tuple[int, http.client.HTTPMessage, bytes]) -> str:
    return str(json.loads(answer[2])["code"])


def test_a_web_server_by_its_url(cluster: Cluster, served: shoal.Sandbox) -> None:
    tunnel = served.expose(WEB)
    assert tunnel.url == f"{cluster.file.api_url}/t/{served.id}/{WEB}/"
    assert tunnel.token is not None

    status, _, body = ask(tunnel.url + "data.json", token=tunnel.token, X_Forwarded_For="203.0.113.7")
    seen = {name.lower(): value for name, value in json.loads(body)["headers"]}
    assert (status, json.loads(body)["word"]) == (200, "hello")
    assert seen["host"] == seen["x-forwarded-host"] == urlsplit(tunnel.url).netloc
    assert seen["x-forwarded-for"] == "127.0.0.1"
    assert not [name for name in seen if "shoal" in name]

    assert ask(tunnel.url)[0] == 401
    assert ask(tunnel.url, token=tunnel.token[:-2] + "AA")[0] == 401
    assert code(ask(tunnel.url.replace("8080", "8081"), token=tunnel.token)) == "unauthenticated"
    status, headers, _ = ask(tunnel.url + "go", token=tunnel.token)
    assert (status, headers["Location"]) == (302, f"/t/{served.id}/{WEB}/data.json")
    assert tunnel.link is not None
    status, headers, _ = ask(tunnel.link)
    assert (status, headers["Location"]) == (303, f"/t/{served.id}/{WEB}/")
    cookie = headers["Set-Cookie"].partition(";")[0]
    assert ask(tunnel.url, Cookie=cookie)[0] == 200

    unused = served.expose(8081)
    answer = ask(str(unused.url), token=unused.token)
    assert (answer[0], code(answer)) == (503, "unavailable")
    served.unexpose(8081)


def test_large_bodies_both_ways(served: shoal.Sandbox) -> None:
    tunnel = served.expose(WEB)
    _, _, body = ask(f"{tunnel.url}big", token=tunnel.token)
    expected = b"".join(bytes([number]) * (1 << 20) for number in range(64))
    assert hashlib.sha256(body).digest() == hashlib.sha256(expected).digest()
    status, _, digest = ask(f"{tunnel.url}hash", method="POST", token=tunnel.token, body=expected)
    assert (status, digest.decode()) == (200, hashlib.sha256(expected).hexdigest())


def test_public_on_request_and_closed_again(served: shoal.Sandbox) -> None:
    tunnel = served.expose(WEB, public=True)
    assert tunnel.token is None
    eventually(lambda: ask(f"{tunnel.url}data.json")[0] == 200, what="an open tunnel")
    assert [(t.port, t.public) for t in served.tunnels() if t.port == WEB] == [(WEB, True)]
    served.expose(WEB, public=False)
    eventually(lambda: ask(f"{tunnel.url}data.json")[0] == 401, what="a private tunnel")
    token = served.connect_token(WEB, 60).token
    served.unexpose(WEB)
    eventually(lambda: ask(f"{tunnel.url}data.json", token=token)[0] == 404, what="no tunnel")


def test_a_websocket(served: shoal.Sandbox) -> None:
    tunnel = served.expose(WEB)
    assert tunnel.url is not None
    url = tunnel.url.replace("http", "ws", 1) + "ws"
    headers = {"X-Shoal-Connect-Token": str(tunnel.token)}
    with connect(url, additional_headers=headers, subprotocols=[Subprotocol("echo.v1")], proxy=None) as there:
        assert there.subprotocol == "echo.v1"
        for message in ("text", b"\x00\xff", "x" * 50_000):
            there.send(message)
            assert there.recv(timeout=30) == message
        there.close(4001, "enough")
    assert (there.close_code, there.close_reason) == (4001, "enough")


def talk(address: str, sent: bytes) -> bytes:
    """What a raw service answers to all of `sent`; raises where it hangs up."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 30) as there:
        there.sendall(sent)
        there.shutdown(socket.SHUT_WR)
        got = b""
        while data := there.recv(1 << 16):
            got += data
        return got


def hung_up(address: str, sent: bytes) -> bool:
    """Whether the connection ends without a word."""
    try:
        return talk(address, sent) == b""
    except TimeoutError:
        return False
    except OSError:  # reset, or (shutting down what has been reset) not connected any more
        return True


def test_raw_tcp_by_a_port_of_the_node_and_by_one_of_this_machine(served: shoal.Sandbox) -> None:
    data = os.urandom(3 << 20)
    expected = b"%d bytes %s" % (len(data), hashlib.sha256(data).hexdigest().encode())
    tunnel = served.expose(RAW, protocol="tcp")
    assert tunnel.address is not None
    assert tunnel.token is not None
    assert talk(tunnel.address, tunnel.token.encode() + b"\n" + data) == expected
    for wrong in (b"", b"wrong\n", served.connect_token(RAW, 60).token.encode()[:-3] + b"AAA\n"):  # type: ignore[union-attr]
        assert hung_up(tunnel.address, wrong + data)
    public = served.expose(RAW, protocol="tcp", public=True)
    assert public.address is not None
    eventually(lambda: talk(str(public.address), data) == expected, what="an open port")
    served.unexpose(RAW)
    with served.forward(RAW) as forward:
        assert talk(forward.address, data) == expected
        answers: list[bytes] = []
        threads = [threading.Thread(target=lambda: answers.append(talk(forward.address, data))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert answers == [expected] * 8


@pytest.mark.timeout(600)  # the first time the browser is installed
def test_a_browser_loads_a_page_with_what_its_script_fetches(served: shoal.Sandbox) -> None:
    tunnel = served.expose(WEB)
    with browser(printing) as page:
        page.load(str(tunnel.link))
        own = f"http://{WEB}-{served.id}.localhost:{urlsplit(str(tunnel.url)).port}/"
        assert page.value("location.href") == own, "an origin of its own"
        assert page.until("document.title != 'waiting' && document.title") == "closed 1000"
        assert page.value("document.getElementById('said').textContent") == "hello, from the page, echo.v1"
        assert "shoal_tunnel" not in page.value("document.cookie")
        page.load(f"{own}?shoal_token=wrong")  # it has its cookie
        assert page.until("document.title != 'waiting' && document.title") == "closed 1000"
        page.load(str(tunnel.url))
        assert "this tunnel is private" in page.value("document.body.textContent"), "its cookie is not the API's"
    with browser(printing) as stranger:
        stranger.load(str(tunnel.url))
        assert "this tunnel is private" in stranger.value("document.body.textContent")


def test_the_command_line_opens_lists_forwards_and_closes(served: shoal.Sandbox) -> None:
    def shoal_command(*arguments: str) -> str:
        return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=True).stdout

    link = shoal_command("tunnel", served.id, str(WEB)).strip()
    assert ask(link)[0] == 303
    assert json.loads(shoal_command("tunnels", served.id, "--json"))[0]["port"] == WEB
    assert str(WEB) in shoal_command("tunnels", served.id)
    shoal_command("tunnel", served.id, str(WEB), "--rm")
    assert json.loads(shoal_command("tunnels", served.id, "--json")) == []
    with subprocess.Popen(
        [*COMMAND, "forward", served.id, f"{WEB}:0"], stdout=subprocess.PIPE, text=True
    ) as forwarding:
        assert forwarding.stdout is not None
        address = forwarding.stdout.readline().strip()
        assert ask(f"http://{address}/data.json")[0] == 200
        forwarding.send_signal(signal.SIGINT)
        assert forwarding.wait(30) == 130


def test_tunnels_outlive_a_killed_controller_and_end_with_the_sandbox(cluster: Cluster) -> None:
    sandbox = started()
    try:
        tunnel = sandbox.expose(WEB)
        before = sandbox.tunnels()
        kill(actor_pid("controller"))
        assert sandbox.tunnels() == before
        eventually(lambda: ask(f"{tunnel.url}data.json", token=tunnel.token)[0] == 200, what="the tunnel")

        parts = urlsplit(str(tunnel.url))
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
        connection.request("GET", f"{parts.path}events", headers={"X-Shoal-Connect-Token": str(tunnel.token)})
        events = connection.getresponse()
        assert events.read(len(b"data: first\n\n")) == b"data: first\n\n"
    finally:
        sandbox.terminate()
    try:
        assert events.read() == b""
    except (http.client.IncompleteRead, ConnectionError):
        pass  # it broke off, and says so
    connection.close()
    eventually(lambda: code(ask(str(tunnel.url), token=tunnel.token)) == "sandbox_ended", what="the end")
    eventually(lambda: code(ask(str(tunnel.url))) == "unauthenticated", what="a closed door")
