"""Tunnels' URLs, made and read, and the tokens that open them."""

from __future__ import annotations

import pytest

from shoal.model import grants
from shoal.model.errors import Unauthenticated
from shoal.model.tunnels import Target, target_of_host, target_of_path, tunnel_url, url_with_token

SECRET = bytes(32)


@pytest.mark.parametrize(
    ("api", "domain", "url"),
    [
        ("http://127.0.0.1:8000", None, "http://127.0.0.1:8000/t/sb-a1/8080/"),
        ("https://shoal.example/api/", None, "https://shoal.example/api/t/sb-a1/8080/"),
        ("https://shoal.example", "t.example", "https://8080-sb-a1.t.example/"),
        ("http://127.0.0.1:8000", "localhost", "http://8080-sb-a1.localhost:8000/"),
    ],
)
def test_urls(api: str, domain: str | None, url: str) -> None:
    assert tunnel_url(api, domain, "sb-a1", 8080) == url
    assert url_with_token(url, "a.b-_") == f"{url}?shoal_token=a.b-_"


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (b"/t/sb-a1/8080", Target("sb-a1", 8080, "/t/sb-a1/8080")),
        (b"/t/sb-a1/8080/../x", Target("sb-a1", 8080, "/t/sb-a1/8080")),
        *(
            (path, None)
            for path in (b"/t/sb-a1/0/", b"/t/sb-a1/65536/", b"/t/sb-a1/080/", b"/t/sb-a1/80x", b"/t/sb-A/80/")
        ),
        *(
            (path, None)
            for path in (
                b"/t/sb-a1/80%2f",
                b"/%74/sb-a1/80/",
                b"//t/sb-a1/80/",
                b"/v1/t/sb-a1/80/",
                b"/t/sb-a1/80\n",
                b"",
            )
        ),
    ],
)
def test_paths(path: bytes, target: Target | None) -> None:
    assert target_of_path(path) == target


@pytest.mark.parametrize("host", ["8080-sb-a1.t.example", "8080-SB-A1.T.Example:443", "8080-sb-a1.t.example."])
def test_hosts(host: str) -> None:
    assert target_of_host(host, "t.example") == Target("sb-a1", 8080)


@pytest.mark.parametrize(
    "host",
    [
        "t.example",
        "8080-sb-a1.example",
        "8080-sb-a1.x.t.example",
        "8080-sb-a1.t.example.evil",
        "0-sb-a.t.example",
        "99999-sb-a.t.example",
        "",
    ],
)
def test_other_hosts(host: str) -> None:
    assert target_of_host(host, "t.example") is None


def test_a_token_says_what_it_was_signed_for_until_it_expires() -> None:
    token = grants.sign(SECRET, "sb-a1", "http", ("tunnel",), 100, port=80)
    assert grants.verify(SECRET, token, 99.9) == grants.Claims("sb-a1", "http", ("tunnel",), 100.0, 80)
    with pytest.raises(Unauthenticated, match="expired"):
        grants.verify(SECRET, token, 100)
    with pytest.raises(Unauthenticated, match="not one of this cluster's"):
        grants.verify(bytes([1]) * 32, token, 0)


@pytest.mark.parametrize("place", range(0, 180, 7))
def test_no_changed_token_is_taken(place: int) -> None:
    token = grants.sign(SECRET, "sb-a1", "http", ("tunnel",), 100, port=80)
    place %= len(token) - 1  # the last character has bits that say nothing
    changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
    with pytest.raises(Unauthenticated):
        grants.verify(SECRET, changed, 0)


@pytest.mark.parametrize("token", ["", ".", "a", "a.b", "é.é", "a.b.c", "=.=", "x" * 5000, "\x00.\x00"])
def test_nonsense_is_no_token(token: str) -> None:
    with pytest.raises(Unauthenticated):
        grants.verify(SECRET, token, 0)
