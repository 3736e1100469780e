"""Bodies, paths and queries at their bounds, and what is no text at all."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from shoal.cluster.api.request import limits
from shoal.model.settings import ApiSettings
from tests.api import Answer, Api, serving

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def small() -> Iterator[Api]:
    """An API that takes 1,000 bytes of JSON."""
    with serving(ApiSettings(max_body=1000)) as served:
        yield served


def body_of(size: int) -> bytes:
    return b"{}" + b" " * (size - 2)


def post(api: Api, raw: bytes, headers: dict[str, str] | None = None) -> Answer:
    return api.ask("POST", "/v1/sandboxes", raw=raw, headers=JSON if headers is None else headers)


class TestSize:
    def test_up_to_the_bound_it_is_taken(self, small: Api) -> None:
        assert post(small, body_of(4_000)).status == 201

    def test_beyond_it_it_is_refused(self, small: Api) -> None:
        got = post(small, body_of(4_001))
        assert (got.status, got.json["code"], got.json["limit"]) == (413, "invalid_request", 4_000)
        assert "create" not in [name for name, _ in small.fake.calls]

    def test_beyond_it_piece_by_piece_too(self, small: Api) -> None:
        with socket.create_connection(("127.0.0.1", small.port), timeout=10) as peer:
            peer.sendall(head(small, "Transfer-Encoding: chunked"))
            for _ in range(11):
                peer.sendall(b"190\r\n" + b" " * 400 + b"\r\n")
            assert b" 413 " in first_line(peer)

    def test_a_batch_may_have_more(self, small: Api) -> None:
        raw = b'{"sandboxes": [{}]}'
        got = small.ask("POST", "/v1/sandboxes/batch", raw=raw + b" " * (4_000 - len(raw)), headers=JSON)
        assert got.status == 200
        got = small.ask("POST", "/v1/sandboxes/batch", raw=raw + b" " * (4_001 - len(raw)), headers=JSON)
        assert (got.status, got.json["limit"]) == (413, 4_000)

    def test_a_length_beyond_all_numbers(self, small: Api) -> None:
        with socket.create_connection(("127.0.0.1", small.port), timeout=10) as peer:
            peer.sendall(head(small, "Content-Length: " + "9" * 18))
            assert b" 413 " in first_line(peer)


class TestTime:
    def test_a_body_that_does_not_come_is_given_up(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "BODY_S", 0.2)
        with socket.create_connection(("127.0.0.1", api.port), timeout=10) as peer:
            peer.sendall(head(api, "Content-Length: 100") + b'{"name":')
            assert b" 408 " in first_line(peer)

    def test_a_client_that_leaves_in_the_midst_makes_nothing(self, api: Api) -> None:
        with socket.create_connection(("127.0.0.1", api.port), timeout=10) as peer:
            peer.sendall(head(api, "Content-Length: 100") + b'{"name":')
        assert api.ask("GET", "/v1/health").status == 200
        assert api.fake.named("create") == []


class TestKind:
    @pytest.mark.parametrize(
        "kind", ["application/json", "Application/JSON; charset=UTF-8", "application/merge-patch+json"]
    )
    def test_json_is_taken(self, api: Api, kind: str) -> None:
        assert post(api, b"{}", {"Content-Type": kind}).status == 201

    @pytest.mark.parametrize(
        "kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16", "json", "ü"]
    )
    def test_what_is_not_called_json_is_refused(self, api: Api, kind: str) -> None:
        got = post(api, b"{}", {"Content-Type": kind})
        assert (got.status, got.json["code"]) == (415, "invalid_request")

    @pytest.mark.parametrize(
        "raw",
        [
            b"", b"{", b"nul", b"{}{}", b'{"name": "\xff"}', b'{"name": "\\ud800"}', b'{"\\udc00": 1}',
            b'{"name": "a\\u0000"}',
            b'{"timeout": NaN}', b'{"timeout": Infinity}', b'{"timeout": -Infinity}', b'{"timeout": 1e999}',
            b'{"timeout": ' + b"9" * 5000 + b"}", b'{"disk": ' + b"9" * 400 + b"}", b"[" * 100_000, b'{"a":' * 5000,
            b'\xef\xbb\xbf{"name": "x"}', b"\x00", b'"text"', b"null", b"1", b"\xff\xfe{\x00}\x00",
        ],
        ids=lambda raw: repr(raw[:24]),
    )  # fmt: skip
    def test_what_is_no_json_or_no_text_is_refused(self, api: Api, raw: bytes) -> None:
        got = post(api, raw)
        assert (got.status, got.json["code"]) == (400, "invalid_request")
        assert len(got.body) < 2000


class TestAddress:
    @pytest.mark.parametrize(
        "path",
        [
            "/v1/sandboxes/%ff", "/v1/sandboxes?region=%ff", "/v1/sandboxes?%ff=1", "/v1/sandboxes?region=%00",
            "/v1/sandboxes?region=%ed%a0%80", "/v1/sandboxes?nothing", "/v1/sandboxes?=", "/v1/sandboxes?Limit=1",
            "/v1/environments/%00", "/v1/environments/a%20b", "/v1/environments/" + "x" * 65,
            "/v1/audit?before=0", "/v1/audit?before=99999999999999999999", "/v1/audit?limit=0", "/v1/events?after=-1",
            "/v1/events?follow=maybe", "/v1/health?verbose=1",
        ],
    )  # fmt: skip
    def test_what_is_no_text_or_unknown_is_refused(self, api: Api, path: str) -> None:
        got = api.ask("GET", path)
        assert (got.status, got.json["code"]) in [(400, "invalid_request"), (404, "sandbox_not_found")]

    def test_bytes_that_are_not_encoded_are_refused(self, api: Api) -> None:
        with socket.create_connection(("127.0.0.1", api.port), timeout=10) as peer:
            peer.sendall(
                b"GET /v1/sandboxes?region=\xff HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
                + api.root.encode()
                + b"\r\n\r\n"
            )
            assert b" 400 " in first_line(peer)


def head(api: Api, *more: str) -> bytes:
    lines = [
        "POST /v1/sandboxes HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {api.root}",
        "Content-Type: application/json",
    ]
    return "\r\n".join([*lines, *more, "", ""]).encode()


def first_line(peer: socket.socket) -> bytes:
    data = b""
    while b"\r\n" not in data:
        piece = peer.recv(4096)
        assert piece, "closed without an answer"
        data += piece
    return data.partition(b"\r\n")[0]
