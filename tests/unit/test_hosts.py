"""Which hosts are this machine, for all who ask."""

from __future__ import annotations

import pytest

from shoal.model.errors import InvalidRequest
from shoal.model.hosts import check_open, is_loopback
from shoal.model.settings import ApiSettings
from shoal.transport.http_server import server

HERE = ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]"]
ELSEWHERE = [
    "",
    "localhost.evil",
    "evil-localhost",
    "10.0.0.1",
    "0.0.0.0",
    "::",
    "[::]",
    "[",
    "127.0.0.1.evil",
    "[[::1]]",
]


def test_loopback_is_told_from_what_looks_like_it() -> None:
    assert all(map(is_loopback, HERE))
    assert not any(map(is_loopback, ELSEWHERE))


@pytest.mark.parametrize("host", ["localhost", "localhost.", "a.localhost", "127.8.9.1", "[::1]"])
def test_what_is_here_is_reached_without_a_proxy(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    assert server(f"http://{host}:8000", None, None).proxy is None
    assert server("http://localhost.evil:8000", None, None).proxy is not None


def test_authentication_may_be_off_here_only() -> None:
    check_open(ApiSettings(host="::1", auth=False))
    check_open(ApiSettings(host="0.0.0.0", auth=True))
    with pytest.raises(InvalidRequest) as caught:
        check_open(ApiSettings(host="0.0.0.0", auth=False))
    assert caught.value.field == "api.auth"
