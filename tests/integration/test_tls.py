"""A whole cluster that speaks TLS by certificate files, with tunnels on names of their own, as docs/operating.md and
docs/tunnels.md say.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect

from shoal.client import config_file
from shoal.client.cluster import Client
from shoal.client.sandbox import Sandbox
from shoal.transport.http import HttpTransport
from tests.cluster import Machine
from tests.contract.tls_files import Authority
from tests.processes import eventually
from tests.site import Site, make_site

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(300)]

SERVER = Path(__file__).with_name("tunnel_server.py")
DOMAIN = "tunnels.test"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, ("localhost", f"*.{DOMAIN}"))


@pytest.fixture
def site(machine: Machine, engine: str, authority: Authority) -> Iterator[Site]:
    files = {
        "SHOAL_API__TLS_CERT": str(authority.server_certificate),
        "SHOAL_API__TLS_KEY": str(authority.server_key),
        "SHOAL_API__TUNNEL_DOMAIN": DOMAIN,
        "SHOAL_API__TRUSTED_PROXIES": '["127.0.0.0/8"]',
    }
    for site in make_site(machine, engine):
        yield replace(site, environ={**site.environ, **files})


def wire(port: int, name: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A connection to `name`, which every DNS server would say is this machine."""
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 30), server_hostname=name)


def get(url: str, context: ssl.SSLContext, headers: dict[str, str]) -> tuple[int, bytes]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    connection.sock = wire(parts.port, parts.hostname, context)
    with closing(connection):
        connection.request("GET", parts.path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_a_cluster_speaks_tls(site: Site, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    found = site.up()
    url, trusted = found.api_url, authority.client()
    port = urlsplit(url).port
    assert url.startswith("https://127.0.0.1:")
    assert port is not None
    # The API answers as soon as the gateway knows of the first one.
    eventually(lambda: json.loads(site.shoal("status", "--json"))["replicas"] == 2, what="both replicas")

    with site.start("--url", url, "ls") as stranger:
        _, said = stranger.communicate(timeout=60)
    assert stranger.returncode == 78
    assert "not trusted" in said
    with site.start("--url", url.replace("https", "http"), "ls") as plain:
        _, said = plain.communicate(timeout=60)
    assert plain.returncode != 0
    assert "https" in said.lower(), "the gateway tells who speaks plain HTTP"
    ca = str(authority.certificate)
    over = ("--url", url, "--ca", ca)
    assert site.shoal(*over, "run", "shoal/base", "echo", "hello") == "hello\n"

    monkeypatch.setenv("SHOAL_CONFIG", site.environ["SHOAL_CONFIG"])
    token = config_file.read().servers[url].token
    client = Client(HttpTransport(url, token, ca))
    try:
        with Sandbox.create(network="none", timeout=300, client=client) as sandbox:
            sandbox.files.write_bytes("/server.py", SERVER.read_bytes())
            process = sandbox.exec("python3", "/server.py")
            assert next(iter(process.stdout)) == "ready\n"
            tunnel = sandbox.expose(8080)
            assert tunnel.url == f"https://8080-{sandbox.id}.{DOMAIN}:{port}/"
            assert tunnel.token is not None
            headers = {"X-Shoal-Connect-Token": tunnel.token, "X-Forwarded-For": "198.51.100.1, 203.0.113.7"}
            status, body = get(f"{tunnel.url}data.json", trusted, headers)
            assert status == 200
            seen = dict(json.loads(body)["headers"])
            assert seen["x-forwarded-proto"] == "https"
            assert seen["x-forwarded-for"] == "203.0.113.7", "the last that a trusted proxy named"
            assert seen["host"] == urlsplit(tunnel.url).netloc
            assert get(f"{tunnel.url}data.json", trusted, {})[0] == 401
            raw, uri = socket.create_connection(("127.0.0.1", port), 30), tunnel.url.replace("https", "wss", 1) + "ws"
            with connect(uri, sock=raw, ssl=trusted, additional_headers=headers) as there:
                there.send("over TLS")
                assert there.recv(timeout=30) == "over TLS"
    finally:
        client.close()

    def serial() -> str:
        with wire(port, "127.0.0.1", trusted) as shown:
            certificate = shown.getpeercert()
            assert certificate is not None
            return str(certificate["serialNumber"])

    before = serial()
    authority.renew()
    eventually(lambda: serial() != before, what="the new certificate")
    assert site.shoal(*over, "run", "shoal/base", "echo", "again") == "again\n"
