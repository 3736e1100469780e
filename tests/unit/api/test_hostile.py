"""What no well-meant client sends: values at their bounds and beyond, JSON that is none, bodies that lie about their
length.
"""

from __future__ import annotations

import gzip
import json
import math
import socket
import time
from collections.abc import Iterator

import pytest

from shoal.cluster.api.request import limits
from shoal.model.settings import ApiSettings, Limits
from shoal.model.validate import MAX_ARGV_ITEM, MAX_START_ITEMS
from shoal.wire import checks
from tests.api import Answer, Api, serving
from tests.unit.api.raw import PATIENCE_S, everything, exchange, problem, request, statuses

JSON = "Content-Type: application/json"


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    """One for all of them: what each of them leaves behind must not trouble the next."""
    with serving() as served:
        yield served


def made(api: Api) -> int:
    """How many sandboxes were ever made."""
    return len(api.ask("GET", "/v1/sandboxes?include_ended=true&limit=1000").json["sandboxes"])


def refused(answer: Answer, field: str, status: int = 400) -> None:
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json"), answer.body[:300]
    assert answer.json["status"] == status
    assert answer.json["field"] == field, answer.json


class TestBounds:
    """Each value at its limit goes through, and one beyond it is refused by name."""

    @pytest.mark.parametrize(
        ("field", "most", "beyond"),
        [
            ("image", "i" * 512, "i" * 513),
            ("image", "i", ""),
            ("command", ["true"] + [""] * 4095, ["true"] + [""] * 4096),
            ("command", ["true", "x" * MAX_ARGV_ITEM], ["true", "x" * (MAX_ARGV_ITEM + 1)]),
            ("command", ["true", "é" * (MAX_ARGV_ITEM // 2)], ["true", "é" * (MAX_ARGV_ITEM // 2 + 1)]),
            ("name", "n" * 64, "n" * 65),
            ("tags", {str(i): "" for i in range(64)}, {str(i): "" for i in range(65)}),
            ("tags", {"k" * 256: "v" * 256}, {"k": "v" * 257}),
            ("env", {"A": "x" * (MAX_ARGV_ITEM - 2)}, {"A": "x" * (MAX_ARGV_ITEM - 1)}),
            ("workdir", "/" + "w" * 4095, "/" + "w" * 4096),
            ("user", "u" * 256, "u" * 257),
            ("cpu", 1024, math.nextafter(1024, math.inf)),
            ("cpu", [5e-324, 1024], [0, 1]),
            ("memory", [1, 16], [1, 15]),
            ("memory", 1 << 24, (1 << 24) + 1),
            ("disk", 1 << 30, (1 << 30) + 1),
            ("disk", 1, 0),
            ("gpu", 64, 65),
            ("gpu", 0, -1),
            ("pids", Limits().pids, Limits().pids + 1),
            ("pids", 2, 1),
            ("timeout", Limits().timeout, math.nextafter(Limits().timeout, math.inf)),
            ("timeout", 5e-324, 0),
            ("idle_timeout", Limits().timeout, math.nextafter(Limits().timeout, math.inf)),
            ("region", "r" * 63, "r" * 64),
            ("region", [f"r{number}" for number in range(16)], [f"r{number}" for number in range(17)]),
            ("zone", "z" * 63, "z" * 64),
            ("environment", "e" * 64, "e" * 65),
        ],
        ids=lambda value: repr(value)[:24],
    )
    def test_of_a_create(self, api: Api, field: str, most: object, beyond: object) -> None:
        if field == "environment":
            api.ask("POST", "/v1/environments", {"name": most})
        assert api.ask("POST", "/v1/sandboxes", {field: most}).status == 201
        answer = api.ask("POST", "/v1/sandboxes", {field: beyond})
        assert (answer.status, answer.json["field"].split(".")[0]) == (400, field), answer.body[:300]

    @pytest.mark.parametrize(
        ("field", "most", "beyond"),
        [
            ("argv", ["true"] * MAX_START_ITEMS, ["true"] * (MAX_START_ITEMS + 1)),
            ("argv", ["true", "x" * MAX_ARGV_ITEM], ["true", "x" * (MAX_ARGV_ITEM + 1)]),
            ("command", "true " + "x" * (MAX_ARGV_ITEM - 5), "true " + "x" * (MAX_ARGV_ITEM - 4)),
            ("env", {"A": "x" * (MAX_ARGV_ITEM - 2)}, {"A": "x" * (MAX_ARGV_ITEM - 1)}),
            ("workdir", "/" + "w" * (checks.MAX_PATH - 1), "/" + "w" * checks.MAX_PATH),
            ("user", "u" * 256, "u" * 257),
            ("timeout", checks.MAX_SECONDS, checks.MAX_SECONDS + 1),
            ("timeout", 0, -5e-324),
            ("id", "p-" + "a" * 32, "p-" + "a" * 33),
            ("max_output", 64 << 20, (64 << 20) + 1),
            ("max_output", 0, -1),
        ],
        ids=lambda value: repr(value)[:24],
    )
    def test_of_an_exec(self, api: Api, field: str, most: object, beyond: object) -> None:
        at = f"/v1/sandboxes/{api.sandbox()['id']}/exec"
        start = {} if field in ("argv", "command") else {"argv": ["true"]}
        assert api.ask("POST", at, {**start, field: most}).status == 200
        refused(api.ask("POST", at, {**start, field: beyond}), field)

    @pytest.mark.parametrize(
        ("path", "field"),
        [
            ("/v1/sandboxes?deadline={}", ("300", "300.1")),
            ("/v1/sandboxes?limit={}", ("1000", "1001")),
            ("/v1/events?follow=false&after={}", (str((1 << 63) - 1), str(1 << 63))),
            ("/v1/audit?before={}", (str((1 << 63) - 1), str(1 << 63))),
            ("/v1/audit?limit={}", ("1", "0")),
            ("/v1/sandboxes/SB/logs?offset={}", ("0", "-1")),
            ("/v1/sandboxes/SB/wait?timeout={}", ("0", "60.1")),
        ],
    )
    def test_of_queries(self, api: Api, path: str, field: tuple[str, str]) -> None:
        path = path.replace("SB", api.sandbox(command=["true"])["id"])
        method, body = ("POST", {}) if "deadline" in path else ("GET", None)
        assert api.ask(method, path.format(field[0]), body).status in (200, 201)
        refused(
            api.ask(method, path.format(field[1]), body), path.partition("={")[0].rpartition("&")[2].rpartition("?")[2]
        )

    def test_large_bodies_share_a_bounded_memory_and_give_it_back(self, api: Api) -> None:
        at = f"/v1/sandboxes/{api.sandbox()['id']}/exec"
        large = {"argv": ["true", *["x" * MAX_ARGV_ITEM] * 12]}
        bodies: limits.LargeBodies = api.app.state.large_bodies
        assert api.ask("POST", at, large).status == 200
        assert bodies.held == 0
        text = json.dumps(large).encode()
        head = request("POST", at, JSON, f"Content-Length: {len(text)}", "Connection: close", token=api.root)
        bodies.held = bodies.most - 1000
        try:
            assert statuses(exchange(api.port, head, text[: 1 << 20], text[1 << 20 : (1 << 20) + 2000])) == [503]
            assert api.ask("POST", at, {"argv": ["true"]}).status == 200
            assert bodies.held == bodies.most - 1000
        finally:
            bodies.held = 0

    def test_of_keys(self, api: Api) -> None:
        for key, status in ("k" * 128, 201), ("k" * 129, 400), ("", 400), ("a\tb", 400), ("é", 400):
            answer = api.ask("POST", "/v1/sandboxes", {}, headers={"Idempotency-Key": key})
            assert answer.status == status, key

    @pytest.mark.parametrize("path", ["/v1/sandboxes", "/v1/sandboxes/SB/exec", "/v1/tokens", "/v1/sandboxes/SB/tags"])
    def test_every_member_of_another_type_is_named(self, api: Api, path: str) -> None:
        """Two shapes that no member has; with an object of members, the one inside is named."""
        schema = api.ask("GET", "/openapi.json").json
        template = path.replace("SB", "{sandbox_id}")
        name = schema["paths"][template]["post" if "post" in schema["paths"][template] else "put"]["requestBody"]
        members = schema["components"]["schemas"][
            name["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        ]["properties"]
        assert members
        method = "PUT" if path.endswith("tags") else "POST"
        good = {"/v1/tokens": {"name": "n"}, "/v1/sandboxes/SB/tags": {"tags": {}}}.get(path, {})
        at = path.replace("SB", api.sandbox()["id"])
        for member in members:
            for wrong in ([[[]]], {"x": {"y": 1}}):
                answer = api.ask(method, at, {**good, member: wrong})
                assert (answer.status, answer.json["field"].split(".")[0]) == (400, member), (wrong, answer.body[:300])
        refused(api.ask(method, at, {**good, "mistyped": 1}), "mistyped")
        refused(api.ask(method, f"{at}?mistyped=1", good), "mistyped")


class TestJson:
    @pytest.mark.parametrize(
        "body",
        [
            b"", b"{", b"nul", b"{}{}", b"{} x", b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"{'a':1}", b'{"a":1,}',
            b"[" * 500_000,
            b'{"env":' * 100_000, b'{"timeout":NaN}', b'{"timeout":Infinity}', b'{"timeout":-Infinity}',
            b'{"timeout":1e999}',
            b'{"timeout":' + b"9" * 100_000 + b"}", b'{"name":"\xff"}', b'{"name":"\xed\xa0\x80"}',
            b'{"name":"\xc0\xaf"}',
            b'{"name":"\\ud800"}', b'{"env":{"\\udfff":"a"}}', b'{"tags":{"a":"\\ud800x"}}', b'{"name":"a\\u0000b"}',
            b'{"command":["a\\u0000"]}', b'{"env":{"A":"\\u0000"}}', b'{"tags":{"\\u0000":""}}',
            b'{"image":"a\\u0000"}',
            b'{"user":"\\u0000"}', b'{"region":"\\u0000"}', b'{"workdir":"/\\u0000"}', b'{"environment":"main\\u0000"}',
            b'{"name":"main\\n"}', b"null", b"1", b'"x"', b"[]", b"[{}]", b"true",
        ],
        ids=lambda body: repr(body[:24]),
    )  # fmt: skip
    @pytest.mark.parametrize("path", ["/v1/sandboxes", "/v1/sandboxes/SB/exec"])
    def test_what_is_none_or_holds_none_is_refused(self, api: Api, path: str, body: bytes) -> None:
        at = path if path == "/v1/sandboxes" else path.replace("SB", api.sandbox()["id"])
        before = made(api), len(api.fake.named("run"))
        answer = api.ask("POST", at, raw=body, headers={"Content-Type": "application/json"})
        assert (answer.status, answer.json["code"]) == (400, "invalid_request"), answer.body[:300]
        assert len(answer.body) < 2000
        assert (made(api), len(api.fake.named("run"))) == before

    def test_of_two_members_of_a_name_the_last_counts_everywhere(self, api: Api) -> None:
        raw = b'{"name":"first","name":"last","tags":{"a":"1","a":"2"}}'
        answer = api.ask("POST", "/v1/sandboxes", raw=raw, headers={"Content-Type": "application/json"})
        assert (answer.json["name"], answer.json["tags"]) == ("last", {"a": "2"})

    @pytest.mark.parametrize(
        "kind",
        ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
         "application/json; charset=utf-16", "application/jsonx"],
    )  # fmt: skip
    def test_what_is_called_something_else_is_refused(self, api: Api, kind: str) -> None:
        assert api.ask("POST", "/v1/sandboxes", raw=b"{}", headers={"Content-Type": kind}).status == 415

    def test_what_is_packed_is_not_unpacked(self, api: Api) -> None:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        assert api.ask("POST", "/v1/sandboxes", raw=gzip.compress(b"{}"), headers=headers).status == 400

    @pytest.mark.parametrize("path", ["/v1/sandboxes", "/v1/sandboxes/batch", "/v1/sandboxes/SB/exec"])
    def test_what_is_too_large_is_refused_unread(self, path: str) -> None:
        with serving(ApiSettings(max_body=1000, token_cache=1)) as api:
            at = path.replace("SB", api.sandbox()["id"])
            most = 16_000 if path.endswith("exec") else 4_000
            json_type = {"Content-Type": "application/json"}
            fits = api.ask("POST", at, raw=b"{}".ljust(most), headers=json_type)
            assert fits.status in (201, 400)  # it was read, and was good or not
            refused_one = api.ask("POST", at, raw=b"{}".ljust(most + 1), headers=json_type)
            assert (refused_one.status, refused_one.json["limit"]) == (413, most)
            # Announced, and not one byte of it sent: the answer comes all the same.
            head = request("POST", at, JSON, f"Content-Length: {10**15}", "Connection: keep-alive", token=api.root)
            assert statuses(exchange(api.port, head)) == [413]


class TestBodies:
    """Bodies that are not what they say.

    A connection on which that is so is closed: nobody knows where the next request begins.
    """

    def test_one_without_an_end_is_cut_off(self, api: Api) -> None:
        head = request("POST", "/v1/sandboxes", JSON, "Transfer-Encoding: chunked", token=api.root)
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        assert statuses(exchange(api.port, head, *[chunk] * 80)) == [413]

    def test_one_shorter_than_it_says_makes_nothing(self, api: Api) -> None:
        before = made(api)
        head = request("POST", "/v1/sandboxes", JSON, "Content-Length: 50", body=b"{}", token=api.root)
        assert statuses(exchange(api.port, head, half_close=True)) in ([], [400])
        assert made(api) == before

    def test_one_longer_than_it_says_is_no_second_request(self, api: Api) -> None:
        before = made(api)
        head = request("POST", "/v1/sandboxes", JSON, "Content-Length: 2", "Connection: keep-alive", token=api.root)
        assert statuses(exchange(api.port, head, b'{}{"name":"x"}\r\n\r\n', half_close=True)) in ([201, 400], [400])
        assert made(api) <= before + 1

    def test_one_that_drips_is_given_up(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "BODY_S", 0.3)
        head = request("POST", "/v1/sandboxes", JSON, "Content-Length: 100", token=api.root)
        with socket.create_connection(("127.0.0.1", api.port), timeout=0.02) as connection:
            connection.sendall(head)
            began = time.monotonic()
            said = b""
            while not said:
                connection.sendall(b" ")
                try:
                    said = connection.recv(1)
                except TimeoutError:
                    assert time.monotonic() - began < 20  # a machine may stand still for seconds
            connection.settimeout(PATIENCE_S)
            said += everything(connection)
        assert statuses(said) == [408]
        assert problem(said)["code"] == "deadline_exceeded"

    @pytest.mark.parametrize(
        "headers",
        [
            ("Content-Length: 4", "Transfer-Encoding: chunked"),
            ("Transfer-Encoding: chunked", "Content-Length: 4"),
            ("Content-Length: 4", "Transfer-Encoding: xchunked"),
            ("Content-Length: 4", "Transfer-Encoding : chunked"),
            ("Content-Length: 4", "Transfer-Encoding: chunked, identity"),
            ("Content-Length: 4", "Transfer-Encoding:\x0bchunked"),
            ("Content-Length: 4", "Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
            ("Content-Length: 4", " Transfer-Encoding: chunked"),
            ("Content-Length: 4", "X: y\nTransfer-Encoding: chunked"),
            ("Content-Length: 4", "X: y\rTransfer-Encoding: chunked"),
            ("Content-Length: 4", "Content-Length: 100"),
            ("Content-Length: 4, 100",),
            ("Content-Length: -4",),
            ("Content-Length: +4",),
            ("Content-Length: 0x4",),
            ("Content-Length: 4_0",),
            ("Content-Length: 99999999999999999999999",),
            ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ],
        ids=repr,
    )
    def test_of_two_lengths_no_request_is_made_up(self, api: Api, headers: tuple[str, ...]) -> None:
        """A front that reads the length the other way would take what follows for another client's request, or the
        other way round.
        """
        smuggled = request("DELETE", f"/v1/sandboxes/{api.sandbox()['id']}", token=api.root)
        head = request("POST", "/v1/sandboxes", JSON, *headers, "Connection: keep-alive", token=api.root)
        said = exchange(api.port, head, b"0\r\n\r\n" + smuggled, half_close=True)
        assert api.fake.named("terminate") == []
        assert all(status >= 400 for status in statuses(said)), said
        assert len(statuses(said)) <= 1


class TestText:
    @pytest.mark.parametrize(
        "path",
        [
            "/v1/sandboxes/%ff",
            "/v1/sandboxes/sb-%c0%af",
            "/v1/sandboxes/by-name/%ed%a0%80",
            "/v1/tokens/%80",
            "/%fe",
            "/t/%ff/80/",
        ],
    )
    def test_paths_that_are_no_utf8(self, api: Api, path: str) -> None:
        said = exchange(api.port, request("DELETE" if "tokens" in path else "GET", path, token=api.root))
        assert statuses(said)[0] in (400, 404)
        problem(said)

    @pytest.mark.parametrize(
        "path",
        ["/v1/sandboxes/sb-a%00", "/v1/sandboxes/by-name/a%00b", "/v1/environments/main%00",
         "/v1/sandboxes/sb-%2e%2e%2fx",
         "/v1/sandboxes/sb-a%0a", "/v1/sandboxes/by-name/a%0a", "/v1/environments/main%0a", "/v1//sandboxes",
         "/v1/sandboxes/"],
    )  # fmt: skip
    def test_paths_that_name_nothing(self, api: Api, path: str) -> None:
        said = exchange(api.port, request("GET", path, token=api.root))
        assert statuses(said)[0] in (400, 404), said
        problem(said)

    @pytest.mark.parametrize(
        "query",
        [
            "region=%ff",
            "tag=a:%ed%a0%80",
            "cursor=%00",
            "region=a%00",
            "%ff=1",
            "limit=1&limit=2&x",
            "&",
            "limit=1&",
            "&limit=1",
            "limit=1&&region=a",
            "&foo=1&",
            "=1",
        ],
    )
    def test_queries(self, api: Api, query: str) -> None:
        said = exchange(api.port, request("GET", f"/v1/sandboxes?{query}", token=api.root))
        assert statuses(said) == [400]
        assert problem(said)["field"]

    @pytest.mark.parametrize(
        "target", ["&", "&limit=1", "&/v1/sandboxes?limit=1", "/v1/sandboxes&limit=1", "?limit=1", "v1/sandboxes"]
    )
    def test_targets(self, api: Api, target: str) -> None:
        said = exchange(api.port, request("GET", target, token=api.root))
        assert statuses(said)[0] in (400, 404), said

    def test_bytes_in_the_first_line(self, api: Api) -> None:
        for raw in b"/v1/sandboxes/\xff", b"/v1/sandboxes?region=\xe9", b"/v1/sandboxes/\x00":
            whole = request("GET", "PATH", token=api.root).replace(b"PATH", raw)
            assert statuses(exchange(api.port, whole)) == [400], raw

    def test_headers(self, api: Api) -> None:
        for header, status in [
            ("X-Request-Id: \xff\xfe", 200), (f"X-Request-Id: {'a' * 65}", 200), ("Last-Event-ID: \xb2", 400),
            ("Last-Event-ID: -1", 400), ("Last-Event-ID: 99999999999999999999", 400), ("Cookie: \xff=\x01", 400),
            ("A\xe9: 1", 400), ("X: a\x00b", 400),
        ]:  # fmt: skip
            said = exchange(api.port, request("GET", "/v1/events?follow=false", header, token=api.root))
            assert statuses(said) == [status], (header[:40], said[:300])

    def test_a_made_up_request_id_is_not_echoed(self, api: Api) -> None:
        for sent in "a b", "a" * 65, "x\xff", "<script>":
            said = exchange(api.port, request("GET", "/v1/health", f"X-Request-Id: {sent}"))
            assert sent.encode("latin-1") not in said

    def test_unknown_methods(self, api: Api) -> None:
        for method in "PATCH", "OPTIONS", "TRACE", "PROPFIND":
            said = exchange(api.port, request(method, "/v1/sandboxes", token=api.root))
            assert statuses(said) in ([405], [400])
        assert b"allow: GET, POST" in exchange(api.port, request("PATCH", "/v1/sandboxes", token=api.root))


def test_a_refusal_says_as_much_as_is_needed(api: Api) -> None:
    """What a client sent does not come back by the megabyte, in answers or in the audit log."""
    long = "x" * 500_000
    for body in (
        {"name": long},
        {long: 1},
        {"tags": {long: 1}},
        {"network": long},
        {"env": {"A=" + long: "x"}},
        {"workdir": long},
    ):
        answer = api.ask("POST", "/v1/sandboxes", body)
        assert answer.status == 400
        assert len(answer.body) < 3000, len(answer.body)
    at = api.sandbox()["id"]
    for more in {"user": long}, {"id": long}, {"workdir": long}, {"env": {"A=" + long: "x"}}, {"encoding": long}:
        answer = api.ask("POST", f"/v1/sandboxes/{at}/exec", {"argv": ["true"], **more})
        assert answer.status == 400
        assert len(answer.body) < 3000, (json.loads(answer.body), more.keys())
