"""Which cluster `connect` means."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import shoal
from shoal.client import cluster_address, config_file
from shoal.client.cluster_address import Api, RayCluster
from shoal.model import cluster_file
from shoal.model.cluster_file import ClusterFile
from shoal.model.errors import FailedPrecondition, InvalidRequest, Unauthenticated, Unavailable
from shoal.transport.http import HttpTransport
from shoal.transport.http_server import normal_url
from shoal.transport.ray import RayTransport

URL = "https://shoal.example.org"


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SHOAL_URL", "SHOAL_TOKEN", "SHOAL_CA", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHOAL_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("SHOAL_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What a transport was opened with; none is."""
    found: list[object] = []

    async def http(url: str, token: str | None = None, ca: str | None = None) -> HttpTransport:
        found.append((url, token, ca))
        raise Unavailable("stop here")

    async def ray(address: str | None = None) -> RayTransport:
        found.append(address)
        raise Unavailable("stop here")

    monkeypatch.setattr(HttpTransport, "open", http)
    monkeypatch.setattr(RayTransport, "open", ray)
    monkeypatch.setattr("shoal.client.cluster._inside_ray", lambda: False)
    return found


def connect(*args: str, **kwargs: str) -> None:
    with pytest.raises(Unavailable, match="stop here"):
        shoal.connect(*args, **kwargs)


def local_cluster(api_url: str = "") -> None:
    state = Path(_state())
    made = ClusterFile("c", "127.0.0.1:6379", "unix:///e", "/t", "/s", "/r", "/tmp", 1.0, api_url=api_url)
    cluster_file.write(state, made)


def _state() -> str:
    import os

    return os.environ["SHOAL_STATE_DIR"]


def test_what_is_named_goes_before_all(opened: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_URL", "http://other")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:1")
    connect("http://host:8000/", token="t", ca="/ca")
    connect("10.0.0.7:6379")
    connect("ray://10.0.0.7:10001")
    assert opened == [("http://host:8000", "t", "/ca"), "10.0.0.7:6379", "ray://10.0.0.7:10001"]


def test_the_order_without_an_address(opened: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    config_file.put(URL, "from-file", ca="/ca", default=True)
    connect()
    local_cluster()
    connect()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:1")
    connect()
    monkeypatch.setenv("SHOAL_URL", "http://named")
    monkeypatch.setenv("SHOAL_TOKEN", "from-environment")
    connect()
    assert opened == [
        (URL, "from-file", "/ca"),
        "127.0.0.1:6379",
        "10.0.0.1:1",
        ("http://named", "from-environment", None),
    ]


def test_inside_ray_its_own_cluster_is_meant(opened: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    config_file.put(URL, "from-file", default=True)
    monkeypatch.setattr("shoal.client.cluster._inside_ray", lambda: True)
    connect()
    assert opened == [None]


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "auto", "10.0.0.2:6379", "10.0.0.1:6380"])
def test_a_process_that_is_in_one_ray_cluster_does_not_pass_over_the_address_of_another(
    address: str, opened: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(gcs_address="10.0.0.1:6379")
    monkeypatch.setattr("shoal.client.cluster._inside_ray", lambda: True)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get_runtime_context=lambda: context))
    if address in ("auto", context.gcs_address):
        connect(address)
        assert opened == [address]
        return
    with pytest.raises(shoal.FailedPrecondition) as caught:
        shoal.connect(address)
    assert (caught.value.field, caught.value.state) == ("address", "connected")


def test_where_ray_was_imported_too_early_the_api_is_used(
    opened: list[object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in cluster_file.READ_ON_IMPORT:
        monkeypatch.delenv(name)
    config_file.put(URL, "from-file", default=False)
    local_cluster(api_url=URL)
    for _ in range(2):
        connect()
    assert opened == [(URL, "from-file", None)] * 2
    assert "RAY_AUTH_MODE=token" in caplog.text
    local_cluster()
    with pytest.raises(FailedPrecondition) as caught:
        shoal.connect()
    assert caught.value.state == "ray"


def test_where_the_variable_was_set_after_ray_was_imported_the_api_is_used(
    opened: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in cluster_file.READ_ON_IMPORT:
        monkeypatch.setenv(name, "token" if name == "RAY_AUTH_MODE" else "0")
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "192.0.2.2")
    config_file.put(URL, "from-file", default=False)
    local_cluster(api_url=URL)
    connect()
    assert opened == [(URL, "from-file", None)]
    local_cluster()
    with pytest.raises(FailedPrecondition) as caught:
        shoal.connect()
    assert caught.value.state == "ray"


def test_where_a_token_comes_from(opened: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    config_file.put(URL, "from-file", default=True)
    connect(f"{URL.upper().replace('HTTPS', 'https')}/")
    monkeypatch.setenv("SHOAL_TOKEN", "from-environment")
    monkeypatch.setenv("SHOAL_CA", "/ca")
    connect(URL)
    connect(URL, token="given", ca="/own")
    assert opened == [(URL, "from-file", None), (URL, "from-environment", "/ca"), (URL, "given", "/own")]


def test_without_any_all_ways_are_named(opened: list[object]) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        shoal.connect()
    assert all(
        way in str(caught.value) for way in ("shoal up", "shoal login", "SHOAL_URL", "SHOAL_TOKEN", "RAY_ADDRESS")
    )
    assert opened == []


def test_ray_takes_no_token(opened: list[object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        shoal.connect("localhost:8000", token="t")
    assert caught.value.field == "address"
    local_cluster()
    with pytest.raises(InvalidRequest) as caught:
        shoal.connect(token="t")
    assert caught.value.field == "token"
    assert opened == []


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("http://Host:8000/", "http://host:8000"),
        ("https://host/base/", "https://host/base"),
        (" https://host/v1/ ", "https://host"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_urls_are_made_alike(written: str, normal: str) -> None:
    assert normal_url(written) == normal
    assert normal_url(normal) == normal


def test_a_url_in_the_environment_is_checked(opened: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_URL", "localhost:8000")
    with pytest.raises(InvalidRequest) as caught:
        shoal.connect()
    assert caught.value.field == "address"
    monkeypatch.undo()


def test_tokens_are_not_shown() -> None:
    assert "secret" not in repr(Api("http://x", "secret", None))
    assert "secret" not in repr(HttpTransport("http://x", "secret").calls.server)
    assert cluster_address.named("a:1", None, None) == RayCluster("a:1")


def test_an_empty_token_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unauthenticated):
        shoal.connect("http://127.0.0.1:1", token="")


def test_a_machine_that_has_joined_is_sent_to_its_head(tmp_path: Path) -> None:
    for told in ("run `shoal up`", "whose head answers"):
        with pytest.raises(FailedPrecondition, match=told) as caught:
            shoal.connect()
        assert caught.value.state == "no_cluster"
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / "state" / "joined.json").touch()
