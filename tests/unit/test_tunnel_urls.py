"""Tunnels' URLs, and the tokens that open them."""

from __future__ import annotations

import pytest

from shoal.model import grants
from shoal.model.errors import Unauthenticated
from shoal.model.tunnels import tunnel_url, url_with_token

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
