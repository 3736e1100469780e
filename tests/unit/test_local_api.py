"""What `shoal up` says before it starts an API that could not be as the settings say."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from shoal.client import config_file
from shoal.cluster.local import actors as local_actors
from shoal.cluster.local import api as local_api
from shoal.cluster.local.doctor import examine
from shoal.model.cluster_file import ClusterFile
from shoal.model.errors import FailedPrecondition, InvalidRequest
from shoal.model.settings import ApiSettings, Settings
from tests.contract.tls_files import Authority


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "config.toml"
    monkeypatch.setenv("SHOAL_CONFIG", str(file))
    return file


def settings(run_dir: Path = Path("/tmp/r"), **api: object) -> Settings:
    return Settings(run_dir=run_dir, api=ApiSettings.model_validate({"port": 0, **api}))


def plan(**api: object) -> local_api.Plan:
    made = local_api.plan(settings(**api), "0123abcd")  # type: ignore[arg-type]
    assert made is not None
    return made


def started(found: Settings, port: int) -> ClusterFile:
    return ClusterFile(
        cluster="0123abcd",
        ray_address="127.0.0.1:1",
        engine_address="",
        auth_token_path="",
        secret_path="",
        run_dir=str(found.run_dir),
        temp_dir="",
        started_at=0.0,
        settings=found.to_dict(),
        api_listens=f"127.0.0.1:{port}",
        api_url=f"http://127.0.0.1:{port}",
    )


def refused(**api: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        plan(**api)
    return caught.value


def test_none_is_planned_where_none_is_wanted() -> None:
    assert local_api.plan(settings(enabled=False), "0123abcd") is None


def test_a_port_that_is_taken_is_told_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        error = refused(port=taken.getsockname()[1])
    assert error.field == "api.port"
    assert "SHOAL_API__PORT=0" in error.message


def test_an_address_of_another_machine_is_told_from_a_port_that_is_taken() -> None:
    for port in (8000, 0):
        error = refused(host="192.0.2.77", port=port)
        assert error.field == "api.host"


def test_a_host_is_an_address() -> None:
    assert refused(host="shoal.example.com").field == "api.host"


@pytest.mark.parametrize("url", ["shoal.example.com", "https://u:p@x/", "https://x/?a=b", "ftp://x", "https://[x/"])
def test_a_url_is_one_that_clients_can_use(url: str) -> None:
    assert refused(url=url).field == "api.url"


@pytest.mark.parametrize(
    "domain",
    [
        "https://foo.com/",
        "Foo.com",
        "foo.com.",
        "foo.com:8000",
        "",
        ".foo.com",
        "foo..com",
        "-a.com",
        "10.0.0.1",
        "a" * 64,
    ],
)
def test_a_tunnel_domain_is_a_host_name(domain: str) -> None:
    assert refused(tunnel_domain=domain).field == "api.tunnel_domain"


def test_names_that_are_good_are_taken() -> None:
    for domain in ("tunnels.localhost", "localhost", "t.xn--bcher-kva.example", "1-a.example.com"):
        plan(tunnel_domain=domain, url="https://shoal.example.com:8443/below/")


@pytest.mark.parametrize("seconds", [0, 1e-5, 1e9, float("inf"), float("nan")])
def test_headers_have_a_sensible_time_to_arrive_in(seconds: float) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(header_timeout=seconds)
    assert [error["loc"] for error in caught.value.errors()] == [("header_timeout",)]


def test_without_tokens_only_the_loopback_is_served() -> None:
    assert refused(host="0.0.0.0", auth=False).field == "api.auth"
    plan(host="127.0.0.1", auth=False)
    plan(host="::1", auth=False)


def test_certificate_and_key_belong_together(tmp_path: Path) -> None:
    file = tmp_path / "pem"
    file.write_text("-----BEGIN NOTHING-----\n")
    assert refused(tls_cert=file).field == "api.tls_key"
    assert refused(tls_key=file).field == "api.tls_cert"
    assert refused(tls_cert=tmp_path / "none", tls_key=file).field == "api.tls_cert"
    assert refused(tls_cert=file, tls_key=file).field == "api.tls_cert"


def test_doctor_knows_how_long_the_names_of_sockets_will_be(tmp_path: Path) -> None:
    found = settings(run_dir=Path("/tmp", "r" * 70)).model_copy(update={"state_dir": tmp_path})
    checks = {check.name: check for check in examine(found)}
    assert not checks["api"].ok
    assert "run_dir" in (checks["api"].remedy or "")


def test_a_certificate_that_does_not_fit_its_key_replaces_nothing(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    found = settings(tmp_path, tls_cert=authority.server_certificate, tls_key=authority.server_key)
    key = authority.server_key.read_bytes()
    authority.renew()
    authority.server_key.write_bytes(key)
    with pytest.raises(InvalidRequest) as caught:
        local_api.start(started(found, 1))
    assert caught.value.field == "api.tls_cert"


def test_a_run_directory_that_is_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        local_api.plan(settings(run_dir=Path("/tmp", "r" * 70)), "0123abcd")
    assert caught.value.field == "run_dir"


def test_a_configuration_file_that_cannot_be_used_is_told_before_anything_starts(config: Path) -> None:
    config.write_text("")
    config.chmod(0o644)
    with pytest.raises(FailedPrecondition) as caught:
        plan()
    assert caught.value.state == "config"
    config.unlink()
    assert config_file.read().servers == {}


@pytest.mark.parametrize(
    ("api", "url"),
    [
        ({}, "http://127.0.0.1:{port}"),
        ({"host": "0.0.0.0"}, "http://127.0.0.1:{port}"),
        ({"host": "::1"}, "http://[::1]:{port}"),
        ({"url": "https://shoal.example.com"}, "https://shoal.example.com"),
    ],
)
def test_clients_are_told_an_address_that_they_can_reach(api: dict[str, object], url: str) -> None:
    made = plan(**api)
    assert made.url == url.format(port=made.port)


@pytest.mark.parametrize("proxy", ["10.0.0.1/8", "proxy.example.com", "", "10.0.0.0/33"])
def test_trusted_proxies_are_addresses_and_networks(proxy: str) -> None:
    assert refused(trusted_proxies=[proxy]).field == "api.trusted_proxies"
    plan(trusted_proxies=["10.1.2.3", "10.0.0.0/8", "2001:db8::/32"])


class Listener(http.server.ThreadingHTTPServer):
    """Stands where the API does. To `/v1/ready` it says yes, and to nothing else."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.presented: list[str | None] = []
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self.thread.start()


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Listener)
        self.server.presented.append(self.headers["Authorization"])
        self.send_response(200 if self.path == "/v1/ready" else 503)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as found:
        yield found
        found.shutdown()
        found.thread.join()


@pytest.mark.parametrize("good", [True, False])
def test_the_operators_token_goes_to_the_cluster_and_not_to_whoever_listens(
    good: bool, listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = listener.server_address[1]
    url = f"http://127.0.0.1:{port}"
    cluster = started(settings(tmp_path), port)
    config_file.put(url, "shoal_tk-known", ca="/own/ca.pem", default=True)
    asked: list[str | None] = []

    def serve(cluster: ClusterFile, token: str | None, *, roll: bool) -> str | None:
        asked.append(token)
        return token if good else "shoal_tk-new"

    monkeypatch.setattr(local_actors, "serve", serve)
    local_api.start(cluster)
    assert asked == ["shoal_tk-known"]
    assert set(listener.presented) == {None}
    kept = config_file.read()
    assert kept.servers[url] == config_file.ServerEntry("shoal_tk-known" if good else "shoal_tk-new", "/own/ca.pem")
    assert kept.default == url


def test_a_token_that_a_killed_down_took_away_is_there_again(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = started(settings(tmp_path), listener.server_address[1])
    monkeypatch.setattr(local_api, "answers", lambda cluster, path="": True)
    monkeypatch.setattr(local_actors, "serve", lambda cluster, token, *, roll: token or "shoal_tk-new")
    assert local_api.mend(cluster)
    assert config_file.read().servers[cluster.api_url].token == "shoal_tk-new"
    assert not local_api.mend(cluster)
