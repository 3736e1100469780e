"""One cluster as in production: TLS by certificate files, tunnels on their own names, PostgreSQL as its store, Docker.

It is configured as docs/operating.md and docs/tunnels.md say.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect

from shoal import Secret, Volume
from shoal.client import config_file
from shoal.client.cluster import Client
from shoal.client.sandbox import Sandbox
from shoal.cluster.local import processes
from shoal.transport.http import HttpTransport
from tests.cluster import Machine
from tests.contract.tls_files import Authority
from tests.integration.private_images import check_private_image
from tests.integration.test_secrets import inspected
from tests.postgres import Postgres
from tests.processes import command_line, eventually
from tests.site import Site, make_site

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SERVER = Path(__file__).with_name("tunnel_server.py")
DOMAIN = "tunnels.test"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), ("localhost", f"*.{DOMAIN}"))


@pytest.fixture(scope="module")
def site(machine: Machine, engine: str, authority: Authority, postgres: Postgres) -> Iterator[Site]:
    """A cluster that runs."""
    settings = {
        "SHOAL_API__TLS_CERT": str(authority.server_certificate),
        "SHOAL_API__TLS_KEY": str(authority.server_key),
        "SHOAL_API__TUNNEL_DOMAIN": DOMAIN,
        "SHOAL_API__TRUSTED_PROXIES": '["127.0.0.0/8"]',
    }
    with postgres.database() as database:
        for site in make_site(machine, engine):
            configured = replace(site, environ={**site.environ, **settings, "SHOAL_STORE__URL": database})
            configured.up()
            yield configured


@pytest.fixture(scope="module")
def client(site: Site, authority: Authority) -> Iterator[Client]:
    """A client of its API, which trusts the authority."""
    url = site.file().api_url
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_CONFIG", site.environ["SHOAL_CONFIG"])
        token = config_file.read().servers[url].token
    made = Client(HttpTransport(url, token, str(authority.certificate)))
    yield made
    made.close()


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


def test_a_cluster_speaks_tls(site: Site, authority: Authority, client: Client) -> None:
    url, trusted = site.file().api_url, authority.client()
    port = urlsplit(url).port
    assert url.startswith("https://127.0.0.1:")
    assert port is not None
    # The API answers as soon as the gateway knows the first replica.
    eventually(lambda: json.loads(site.shoal("status", "--json"))["replicas"] == 2, what="both replicas")

    with site.start("--url", url, "ls") as stranger:
        _, said = stranger.communicate(timeout=60)
    assert stranger.returncode == 78
    assert "not trusted" in said
    with site.start("--url", url.replace("https", "http"), "ls") as plain:
        _, said = plain.communicate(timeout=60)
    assert plain.returncode != 0
    assert "https" in said.lower(), "the gateway tells who speaks plain HTTP"
    over = ("--url", url, "--ca", str(authority.certificate))
    assert site.shoal(*over, "run", "shoal/base", "echo", "hello") == "hello\n"

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
        seen = {name.lower(): value for name, value in json.loads(body)["headers"]}
        assert seen["x-forwarded-proto"] == "https"
        assert seen["x-forwarded-for"] == "203.0.113.7", "the last that a trusted proxy named"
        assert seen["host"] == urlsplit(tunnel.url).netloc
        assert get(f"{tunnel.url}data.json", trusted, {})[0] == 401
        raw, uri = socket.create_connection(("127.0.0.1", port), 30), tunnel.url.replace("https", "wss", 1) + "ws"
        with connect(uri, sock=raw, ssl=trusted, additional_headers=headers) as there:
            there.send("over TLS")
            assert there.recv(timeout=30) == "over TLS"

    def serial() -> str:
        with wire(port, "127.0.0.1", trusted) as shown:
            certificate = shown.getpeercert()
            assert certificate is not None
            return str(certificate["serialNumber"])

    before = serial()
    authority.renew()
    eventually(lambda: serial() != before, what="the new certificate")
    assert site.shoal(*over, "run", "shoal/base", "echo", "again") == "again\n"


def test_sandboxes_in_docker(site: Site, client: Client) -> None:
    """Other tests have clusters of the direct engine; what each engine does, its conformance suite shows."""
    assert json.loads(site.shoal("status", "--json"))["engine_kind"] == "docker"
    check_private_image(client)
    source = Sandbox.create(persistent=True, disk=64, memory=(64, 128), client=client)
    try:
        assert "No space left" in source.run("echo kept > /root/file; head -c 200M /dev/zero > /root/big").stderr
        source.run("rm /root/big", check=True)
        source.stop()
        source.start()
        assert source.run("cat /root/file").stdout == "kept\n"
        image = source.snapshot_filesystem(ttl=600)
    finally:
        source.terminate()
    hungry = "b = bytearray(400 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\nimport time; time.sleep(60)"
    with Sandbox.create(image=image, network="none", memory=(64, 128), client=client) as child:
        assert child.run("cat /root/file; ls /sys/class/net").stdout == "kept\nlo\n"
        child.exec("python3", "-c", hungry)
        child.wait(timeout=60)
        assert child.info().reason == "out_of_memory"

    # A volume with its metadata in PostgreSQL, and a secret of which the engine knows nothing.
    canary, held = token_hex(16), Volume.ephemeral(client=client)
    options = {"volumes": {"/data": held}, "secrets": [Secret.from_dict({"CANARY": canary})], "client": client}
    with held, Sandbox.create(**options) as sandbox:
        assert sandbox.run("echo $CANARY | tee /data/canary").stdout == f"{canary}\n"
        held.commit()
        assert held.files.read_text("canary") == f"{canary}\n"
        assert canary not in inspected(site.file().engine_address)


class Api:
    """The cluster's API, by plain requests."""

    def __init__(self, site: Site, authority: Authority) -> None:
        found = site.file()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SHOAL_CONFIG", site.environ["SHOAL_CONFIG"])
            self._token = config_file.read().servers[found.api_url].token
        self._address = found.api_listens
        self._trusted = authority.client()

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        with closing(http.client.HTTPSConnection(self._address, timeout=60, context=self._trusted)) as connection:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read()
        assert response.status < 300, data
        return json.loads(data) if data else None


def test_the_controller_and_the_database_are_killed_and_nothing_is_forgotten(
    site: Site, authority: Authority, postgres: Postgres
) -> None:
    cluster = site.file()
    assert not list(site.state_dir.glob("controller/*.sqlite*"))
    assert "postgresql" not in site.shoal("status", "--json"), "the URL holds a password"
    api = Api(site, authority)
    api("POST", "/v1/environments", {"name": "dev", "quota": {"sandboxes": 3}})
    kept = api("POST", "/v1/sandboxes", {"environment": "dev", "name": "kept", "command": ["sleep", "600"]})
    gone = api("POST", "/v1/sandboxes", {"command": ["sh", "-c", "exit 7"]})
    assert api("GET", f"/v1/sandboxes/{gone['id']}/wait?timeout=30")["returncode"] == 7

    def controllers() -> list[int]:
        found = processes.of_cluster(cluster.cluster, Path(cluster.temp_dir))
        return [each.pid for each in found if command_line(each.pid).startswith("ray::ControllerActor")]

    (before,) = controllers()
    os.kill(before, signal.SIGKILL)
    eventually(lambda: controllers() not in ([], [before]), what="a new controller")
    assert api("POST", f"/v1/sandboxes/{kept['id']}/exec", {"argv": ["echo", "on"]})["stdout"] == "on\n"
    postgres.stop("immediate")
    postgres.start()
    ended = api("GET", f"/v1/sandboxes/{gone['id']}")
    assert (ended["reason"], ended["returncode"]) == ("completed", 7)
    assert [one["name"] for one in api("GET", "/v1/environments")["environments"]] == ["dev", "main"]
    end = api("DELETE", f"/v1/sandboxes/{kept['id']}")
    assert end["reason"] == "terminated"
    log = [entry for entry in api("GET", "/v1/audit")["entries"] if entry["target"] == kept["id"]]
    who = {entry["action"]: entry["token"] for entry in log}
    assert who["sandbox.terminate"] == api("GET", "/v1/tokens/self")["id"]
