"""What strangers meet: a real HAProxy as Shoal configures it, before a replica that these tests play."""

from __future__ import annotations

import http.client
import json
import socket
import socketserver
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.utils import accept_key

from shoal.cluster.serving import haproxy
from shoal.cluster.serving.haproxy_config import Edge
from shoal.cluster.serving.place import Place
from shoal.model.errors import Internal, InvalidRequest, Unavailable
from shoal.model.http import error_from_response
from shoal.model.settings import ApiSettings
from tests.haproxy import Front, running, succeeded
from tests.ports import free_port
from tests.processes import eventually
from tests.unit.api.raw import exchange

pytestmark = pytest.mark.slow  # a second each, and there are many

HANDSHAKE_S = 1.0
EDGE = Edge("127.0.0.1", 0, header_timeout=1.0, handshake_timeout=HANDSHAKE_S)
KEY = "AAAAAAAAAAAAAAAAAAAAAA=="
UPGRADE = {"Connection": "Upgrade", "Upgrade": "WebSocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": KEY}
ACCEPTED = (
    f"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept_key(KEY)}\r\n\r\n"
)


class Replica(socketserver.ThreadingTCPServer):
    """Answers with the headers that it got. At `/die` it ends the connection without an answer, the first time; at `/silent` it says nothing;
    at `/socket` it opens a WebSocket, and for a while has nothing to say. `health`: what it says of itself, as Serve's replicas do; `looks`:
    how often that was asked."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.seen: list[str] = []
        self.health, self.looks = "success", 0
        self.connections: set[socket.socket] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def end(self) -> None:
        """As a process ends, with all its connections."""
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other side was faster


class _Requests(socketserver.StreamRequestHandler):
    def _line(self) -> str:
        try:
            return self.rfile.readline().decode()
        except ConnectionResetError:
            return ""  # how HAProxy ends a look

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.request)  # type: ignore[attr-defined]

    def finish(self) -> None:
        self.server.connections.discard(self.request)  # type: ignore[attr-defined]
        super().finish()

    def _look(self) -> None:
        server: Replica = self.server  # type: ignore[assignment]
        health, server.looks = server.health, server.looks + 1
        status = "200 OK" if health == "success" else "503 Service Unavailable"
        self.wfile.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(health)}\r\n\r\n{health}".encode())

    def handle(self) -> None:
        seen = self.server.seen  # type: ignore[attr-defined]
        while line := self._line():
            method, path, _ = line.split()
            headers = {}
            while pair := self.rfile.readline().decode().strip():
                name, _, value = pair.partition(": ")
                headers[name.lower()] = value
            self.rfile.read(int(headers.get("content-length", 0)))
            if path == "/-/healthz":
                self._look()
                continue
            seen.append(f"{method} {path}")
            if path == "/die" and seen.count(f"{method} {path}") == 1:
                return
            if path == "/silent":
                self._line()
                return
            if path == "/socket":
                self.wfile.write(ACCEPTED.encode())
                time.sleep(2 * HANDSHAKE_S)
                self.wfile.write(b"hello")
                return
            body = json.dumps(headers).encode()
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


@pytest.fixture
def replica() -> Iterator[Replica]:
    with Replica() as server:
        yield server
        server.shutdown()


@pytest.fixture
def front(replica: Replica, tmp_path: Path) -> Iterator[Front]:
    with running(tmp_path, EDGE, replica.port) as found:
        yield found


def ask(
    front: Front, method: str = "GET", path: str = "/", headers: dict[str, str] | None = None, body: bytes | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", front.port, timeout=10)) as connection:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response, response.read()


def passed_on(front: Front, headers: dict[str, str]) -> dict[str, str]:
    _, body = ask(front, headers=headers)
    found: dict[str, str] = json.loads(body)
    return found


def test_what_clients_say_about_themselves_is_not_believed(front: Front) -> None:
    got = passed_on(
        front,
        {
            "X-Forwarded-For": "9.9.9.9",
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "evil.example",
            "Forwarded": "for=9.9.9.9",
            "x-request-timeout-seconds": "0.001",
            "x-request-disconnect-disabled": "?0",
            "serve_multiplexed_model_id": "x",
            "x-session-id": "\xff",
        },
    )
    assert got["x-forwarded-for"] == "127.0.0.1"
    assert got["x-forwarded-proto"] == "http"
    assert got["x-request-disconnect-disabled"] == "?1"
    gone = {"x-forwarded-host", "forwarded", "x-request-timeout-seconds", "serve_multiplexed_model_id", "x-session-id"}
    assert not gone & set(got)


def test_a_request_id_is_kept_where_it_is_one(front: Front) -> None:
    assert passed_on(front, {"X-Request-Id": "run-7.a_B"})["x-request-id"] == "run-7.a_B"
    for wrong in ("a b", "x" * 65, "a\tb", "\xff", "", 'ok, a"b\\', 'a"b\\, ok', "one,two"):
        made = passed_on(front, {"X-Request-Id": wrong})["x-request-id"]
        assert made != wrong
        assert len(made) == 36


def test_of_two_request_ids_neither_is_kept(front: Front) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", front.port, timeout=10)) as connection:
        connection.putrequest("GET", "/")
        connection.putheader("X-Request-Id", "one")
        connection.putheader("X-Request-Id", "two")
        connection.endheaders()
        response = connection.getresponse()
        made = json.loads(response.read())["x-request-id"]
    assert len(made) == 36
    assert response.headers.get_all("X-Request-Id") == [made]


def test_where_no_replica_is_left_the_answer_is_to_try_again(tmp_path: Path) -> None:
    with Replica() as replica, running(tmp_path, EDGE, replica.port) as front:
        replica.shutdown()
        replica.server_close()
        deadline = time.monotonic() + 30  # a machine may stand still for seconds
        while (asked := ask(front, headers={"X-Request-Id": "one"}))[0].status == 200:
            assert time.monotonic() < deadline
        made = json.loads(ask(front, headers={"X-Request-Id": 'ok, a"b\\'})[1])["request_id"]
    assert len(made) == 36
    response, body = asked
    assert response.status == 503
    assert response.headers["Retry-After"] == "1"
    assert response.headers["X-Request-Id"] == "one"
    assert json.loads(body)["request_id"] == "one"
    error = error_from_response(response.status, response.headers["Content-Type"], body)
    assert isinstance(error, Unavailable)
    assert error.retryable


def test_a_replica_that_is_to_go_is_asked_until_it_closes_its_door(tmp_path: Path) -> None:
    """While replicas roll it may be the only one that the HAProxy of the moment knows."""
    with Replica() as replica, running(tmp_path, EDGE, replica.port) as front:
        replica.health = "DRAINING"
        said = replica.looks
        eventually(lambda: replica.looks >= said + 2, what="two looks at its health")
        assert haproxy.replicas(str(front.socket)) == 1
        assert ask(front)[0].status == 200
        replica.health = "UNHEALTHY"
        eventually(lambda: haproxy.replicas(str(front.socket)) == 0, what="the end of what is not well")
        assert ask(front)[0].status == 503
        replica.shutdown()


def test_who_was_idle_while_replicas_were_replaced_is_not_told_that_there_are_none(tmp_path: Path) -> None:
    with Replica() as old, Replica() as new, running(tmp_path, EDGE, old.port) as front:
        with closing(http.client.HTTPConnection("127.0.0.1", front.port, timeout=10)) as idle:
            idle.request("GET", "/")
            idle.getresponse().read()
            connection = idle.sock
            with succeeded(tmp_path, new.port):
                old.end()
                assert ask(front)[0].status == 200
                try:
                    connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    answer = connection.recv(65536)
                except (ConnectionResetError, BrokenPipeError):
                    answer = b""  # a client asks on another connection then
        new.end()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 200 ")


def test_before_anything_is_deployed_the_answer_is_to_try_again(tmp_path: Path) -> None:
    with running(tmp_path, EDGE) as front:
        response, body = ask(front)
    error = error_from_response(response.status, response.headers["Content-Type"], body)
    assert (response.status, type(error), error.retryable) == (503, Unavailable, True)
    assert response.headers["Retry-After"] == "1"


def test_what_a_replica_took_to_its_grave_is_sent_again_where_that_does_no_harm(front: Front, replica: Replica) -> None:
    assert ask(front, "GET", "/die")[0].status == 200
    assert replica.seen == ["GET /die", "GET /die"]
    replica.seen.clear()
    assert ask(front, "POST", "/die", {"Idempotency-Key": "k"}, b"{}")[0].status == 200
    assert replica.seen == ["POST /die", "POST /die"]
    replica.seen.clear()
    try:
        response, body = ask(front, "POST", "/die", body=b"{}")
    except http.client.RemoteDisconnected:
        pass  # the other way in which HAProxy says so, where the connection to the replica was not new
    else:
        error = error_from_response(response.status, response.headers["Content-Type"], body)
        assert (response.status, type(error), error.retryable) == (502, Internal, False)
    assert replica.seen == ["POST /die"]


def test_headers_that_come_too_slowly_are_cut_off(front: Front) -> None:
    with socket.create_connection(("127.0.0.1", front.port), 10) as slow:
        start = time.monotonic()
        slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ")
        answer = b""
        while True:  # one byte now and then does not buy more time
            slow.settimeout(0.2)
            try:
                chunk = slow.recv(65536)
            except TimeoutError:
                slow.sendall(b"a")
                continue
            if not chunk:
                break
            answer += chunk
    assert 0.8 < time.monotonic() - start < 30  # a machine may stand still for seconds
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-A\xff: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 1_001 + b"\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)),
    ],
    ids=["tls", "path", "header name", "long header", "many headers", "two lengths", "HTTP/2"],
)
def test_what_is_no_request_gets_no_further(front: Front, replica: Replica, request_: bytes) -> None:
    answer = exchange(front.port, request_)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert replica.seen == []


def test_what_is_too_long_is_told_so(front: Front, replica: Replica) -> None:
    def said(path: str, headers: dict[str, str]) -> int:
        response, body = ask(front, path=path, headers={"X-Request-Id": "one", **headers})
        if response.status != 200:
            error = error_from_response(response.status, response.headers["Content-Type"], body)
            assert isinstance(error, InvalidRequest)
            assert response.headers["X-Request-Id"] == json.loads(body)["request_id"] == "one"
            assert replica.seen == []
        return response.status

    assert said("/" + "u" * 8192, {}) == 414
    assert said("/" + "u" * 60_000, {}) == 414
    for size in (16_400, 60_000):
        assert said("/", {"X-A": "a" * size}) == 431
    for number in (101, 990):
        assert said("/", {f"A-{n}": "b" for n in range(number)}) == 431
    assert said("/" + "u" * 8191, {"X-A": "a" * 16_000, **{f"A-{n}": "b" for n in range(20)}}) == 200
    assert said("/", {f"A-{n}": "b" for n in range(97)}) == 200


def test_a_handshake_that_is_not_answered_ends(front: Front) -> None:
    response, body = ask(front, path="/silent", headers=UPGRADE)
    assert response.status == 504
    error = error_from_response(response.status, response.headers["Content-Type"], body)
    assert isinstance(error, Internal)


def test_a_websocket_may_be_silent_for_longer_than_its_handshake(front: Front) -> None:
    with socket.create_connection(("127.0.0.1", front.port), 10) as client:
        headers = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
        client.sendall(f"GET /socket HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
        said = b""
        while chunk := client.recv(65536):
            said += chunk
    assert said.startswith(b"HTTP/1.1 101 ")
    assert said.endswith(b"hello")


def test_the_admin_socket_is_for_its_owner_only(front: Front) -> None:
    assert stat.S_IMODE(front.socket.stat().st_mode) == 0o600


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(certificate, key) for `localhost`, signed by itself."""
    directory = tmp_path_factory.mktemp("tls")
    cert, key = directory / "cert.pem", directory / "key.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    made = [*command.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", *made], check=True, capture_output=True, timeout=30)
    return cert, key


@contextmanager
def speaking_tls(tmp_path: Path, certificate: tuple[Path, Path], port: int) -> Iterator[Front]:
    """As `shoal up` puts it together."""
    place = Place(tmp_path, "c1")
    settings = ApiSettings(tls_cert=certificate[0], tls_key=certificate[1], header_timeout=1.0)
    place.prepare(settings, free_port(), "127.0.0.1")
    assert stat.S_IMODE(place.certificate.stat().st_mode) == 0o600
    with running(tmp_path, Edge.from_json(place.edge.read_text()), port) as found:
        yield found


def test_tls_is_spoken_with_the_certificate_of_the_settings(
    replica: Replica, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    context = ssl.create_default_context(cafile=str(certificate[0]))
    with speaking_tls(tmp_path, certificate, replica.port) as front:
        with closing(http.client.HTTPSConnection("localhost", front.port, timeout=10, context=context)) as connection:
            connection.request("GET", "/", headers={"X-Forwarded-Proto": "http"})
            assert json.loads(connection.getresponse().read())["x-forwarded-proto"] == "https"
        plain, _ = _plain(front)
        assert b"200" not in plain


def test_old_tls_is_refused(replica: Replica, tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    context: Any = ssl.create_default_context(cafile=str(certificate[0]))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        speaking_tls(tmp_path, certificate, replica.port) as front,
        socket.create_connection(("127.0.0.1", front.port), 10) as raw,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(raw, server_hostname="localhost")


def _plain(front: Front) -> tuple[bytes, float]:
    with socket.create_connection(("127.0.0.1", front.port), 10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            return client.recv(65536), time.monotonic()
        except ConnectionResetError:
            return b"", time.monotonic()
