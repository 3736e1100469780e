"""The API behind nginx and Caddy, configured by the examples in docs/operating.md."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from shoal.client import config_file
from shoal.client.cluster import Client
from shoal.client.sandbox import Sandbox
from shoal.transport.http import HttpTransport
from tests.cluster import Cluster
from tests.contract.tls_files import Authority
from tests.ports import free_port
from tests.unpacked import program

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]  # the first time the proxies are fetched

PAGE = Path(__file__).parents[2] / "docs" / "operating.md"
NGINX = """
daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/log warn;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    {example}
}}
"""
CADDY = "{{\n admin off\n auto_https off\n}}\n{example}"


def example(language: str, start: str) -> str:
    """The block of the page that begins so."""
    found: list[str] = re.findall(
        rf"^```{language}\n({start}.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(found) == 1
    return found[0]


def changed(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert text.count(old) == 1, f"the page has {old!r} {text.count(old)} times"
        text = text.replace(old, new)
    return text


def nginx(directory: Path, authority: Authority, port: int, api: str) -> list[str]:
    text = changed(
        example("nginx", "map "),
        {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "/etc/shoal/fullchain.pem": str(authority.server_certificate),
            "/etc/shoal/privkey.pem": str(authority.server_key),
            "127.0.0.1:8000": api,
        },
    )
    user = "user root;\n" if os.geteuid() == 0 else ""  # its workers could not enter this directory
    (directory / "conf").write_text(user + NGINX.format(directory=directory, example=text))
    return [str(program("nginx", "usr/sbin/nginx")), "-p", str(directory), "-c", str(directory / "conf")]


def caddy(directory: Path, authority: Authority, port: int, api: str) -> list[str]:
    tls = f"    tls {authority.server_certificate} {authority.server_key}"
    text = changed(
        example("", "shoal.example.com "),
        {"shoal.example.com {": f"https://127.0.0.1:{port} {{\n{tls}", "127.0.0.1:8000": api},
    )
    (directory / "conf").write_text(CADDY.format(example=text))
    words = ["run", "--adapter", "caddyfile", "--config", str(directory / "conf")]
    return [str(program("caddy", "usr/bin/caddy")), *words]


@contextmanager
def running(command: list[str], directory: Path, port: int, context: ssl.SSLContext) -> Iterator[None]:
    """A proxy from when it takes connections on."""
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            command, env={"HOME": str(directory), "PATH": "/usr/bin:/bin"}, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 20
        while True:
            said = (directory / "output").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            try:
                with (
                    socket.create_connection(("127.0.0.1", port), 5) as raw,
                    context.wrap_socket(raw, server_hostname="127.0.0.1"),
                ):
                    break
            except OSError:
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)


@dataclass(frozen=True)
class Front:
    """A proxy that speaks TLS before the cluster's API."""

    port: int
    context: ssl.SSLContext
    client: Client
    token: str

    def ask(self, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
        """An answer whose body is still to come."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=self.context)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", "Connection": "close"}
        connection.request(method, f"/v1/sandboxes{path}", body, headers)
        return connection.getresponse()


@pytest.fixture(params=[nginx, caddy])
def front(request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path) -> Iterator[Front]:
    configure: Callable[[Path, Authority, int, str], list[str]] = request.param
    authority, port = Authority(tmp_path), free_port()
    token = config_file.read().servers[cluster.file.api_url].token
    assert token is not None
    with running(configure(tmp_path, authority, port, cluster.file.api_listens), tmp_path, port, authority.client()):
        client = Client(HttpTransport(f"https://127.0.0.1:{port}", token, str(authority.certificate)))
        try:
            yield Front(port, authority.client(), client, token)
        finally:
            client.close()


def test_everything_goes_through(front: Front) -> None:
    data = os.urandom(1 << 20) * 24
    digest = hashlib.sha256(data).digest()
    with Sandbox.create(timeout=120, client=front.client) as sandbox:
        assert sandbox.run("echo hello").stdout == "hello\n"
        sandbox.files.write_bytes("/tmp/frames", data)
        assert hashlib.sha256(sandbox.files.read_bytes("/tmp/frames")).digest() == digest
        with closing(front.ask("PUT", f"/{sandbox.id}/files?path=/tmp/body", data)) as put:
            assert put.status in (200, 201, 204), put.read()
        with closing(front.ask("GET", f"/{sandbox.id}/files?path=/tmp/body")) as got:
            assert hashlib.sha256(got.read()).digest() == digest

        # What is written comes at once, though more is to follow: nothing on the way waits for the rest.
        talking = sandbox.exec("sh", "-c", "echo first; read line; echo $line")
        path = f"/{sandbox.id}/processes/{talking.id}/output?stream=stdout&follow=true"
        with closing(front.ask("GET", path)) as following:
            assert next(iter(talking.stdout)) == following.readline().decode() == "first\n"
            talking.stdin.write("second\n")
            assert next(iter(talking.stdout)) == following.readline().decode() == "second\n"
            assert following.read() == b""
        assert talking.wait() == 0
        with closing(front.ask("POST", f"/{sandbox.id}/exec", b'{"argv": ["true"], "what": 1}')) as refused:
            assert json.loads(refused.read())["field"] == "what"
