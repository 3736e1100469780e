"""Web servers in a sandbox, reached from outside: who gets in, and what goes through."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from shoal.cluster.api.tunnels import tunnel_access, tunnel_http
from shoal.model.access import Scope
from shoal.model.errors import SandboxEnded
from tests.unit.api.tunnel_lab import PORT, Lab, opened

pytestmark = [pytest.mark.anyio, pytest.mark.slow]  # seconds for all of it


@pytest.fixture
async def lab(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Lab]:
    async with opened(tmp_path) as made:
        yield made


async def tell(request: web.Request) -> web.Response:
    """All that the server inside sees of a request."""
    body = hashlib.sha256(await request.read()).hexdigest() if request.body_exists else None
    headers = [(name.lower(), value) for name, value in request.headers.items()]
    return web.json_response({"method": request.method, "path": request.raw_path, "headers": headers, "body": body})


ANY = web.route("*", "/{rest:.*}", tell)


async def test_a_request_arrives_as_it_was_sent_and_says_which_way_it_came(lab: Lab) -> None:
    async with lab.web(ANY):
        url = lab.url("/a%2Fb/c?q=1&q=%20x")
        sent = {
            "X-Forwarded-For": "1.2.3.4",
            "X-Forwarded-Prefix": "/lie",
            "Forwarded": "for=1.2.3.4",
            "X-Own": "kept",
            "TE": "trailers",
        }
        async with lab.session.put(url, data=b"body", headers={**lab.key, **sent}) as answer:
            assert answer.status == 200
            assert answer.headers["X-Request-Id"]
            seen = await answer.json()
        headers = dict(seen["headers"])
        assert (seen["method"], seen["path"], seen["body"]) == (
            "PUT",
            "/a%2Fb/c?q=1&q=%20x",
            hashlib.sha256(b"body").hexdigest(),
        )
        assert headers["host"] == headers["x-forwarded-host"] == lab.api
        assert headers["x-forwarded-proto"] == "http"
        assert headers["x-forwarded-for"] == "127.0.0.1"
        assert headers["x-forwarded-prefix"] == f"/t/{lab.sandbox_id}/{PORT}"
        assert headers["x-own"] == "kept"
        assert headers["content-length"] == "4"
        assert {"forwarded", "te", "x-shoal-connect-token"}.isdisjoint(headers)


async def refused(lab: Lab, url: str, **options: object) -> tuple[int, dict[str, object]]:
    async with lab.session.get(url, allow_redirects=False, **options) as answer:  # type: ignore[arg-type]
        assert answer.content_type == "application/problem+json"
        problem = json.loads(await answer.read())
        assert problem.pop("request_id") == answer.headers["X-Request-Id"]
        return answer.status, problem


async def test_strangers_learn_nothing(lab: Lab) -> None:
    exposed = await refused(lab, lab.url())
    assert exposed[0] == 401
    assert exposed[1]["code"] == "unauthenticated"
    assert await refused(lab, lab.url(port=9)) == exposed
    assert await refused(lab, f"http://{lab.api}/t/sb-never/{PORT}/") == exposed
    await lab.fake.terminate(lab.sandbox_id)
    assert await refused(lab, lab.url()) == exposed


async def test_a_token_opens_its_own_tunnel_until_it_expires(lab: Lab) -> None:
    other = await lab.new_sandbox()
    async with lab.web(ANY):
        for token in (
            lab.token(port=PORT + 1),
            lab.token(sandbox_id=other),
            lab.token(ttl_s=-1),
            lab.token()[:-4] + "AAAA",
            "x" * 5000,
            "ü.ü",
            "a.b.c",
        ):
            status, problem = await refused(lab, lab.url(f"/?shoal_token={token}"))
            assert (status, problem["code"]) == (401, "unauthenticated"), token
        expired = await refused(lab, lab.url(), headers={"X-Shoal-Connect-Token": lab.token(ttl_s=-1)})
        assert "expired" in str(expired[1]["detail"])
        async with lab.session.get(lab.url(), headers=lab.key) as answer:
            assert answer.status == 200


async def test_a_link_becomes_a_cookie_that_the_server_never_sees(lab: Lab) -> None:
    async with lab.web(ANY):
        token = lab.token()
        async with lab.session.get(lab.url(f"/page?a=1&shoal_token={token}&b=2"), allow_redirects=False) as answer:
            assert answer.status == 303
            prefix = f"/t/{lab.sandbox_id}/{PORT}"
            assert answer.headers["Location"] == f"{prefix}/page?a=1&b=2"
            pair, *attributes = answer.headers["Set-Cookie"].split("; ")
            assert pair == f"shoal_tunnel={token}"
            age = next(int(a.removeprefix("Max-Age=")) for a in attributes if a.startswith("Max-Age="))
            assert 50 <= age <= 60
            assert {f"Path={prefix}/", "HttpOnly", "SameSite=Lax"} <= set(attributes)
        cookies = {"Cookie": f"mine=1; shoal_tunnel=wrong; {pair}; more=2"}
        async with lab.session.get(lab.url("/page"), headers=cookies) as answer:
            assert dict((await answer.json())["headers"])["cookie"] == "mine=1; more=2"
        # A page of another tunnel may make the browser send the cookie along, but not be let in by it.
        foreign = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, {"Origin": "http://evil.example"}
        for headers in foreign:
            async with lab.session.post(lab.url("/page"), headers={**cookies, **headers}) as answer:
                assert answer.status == 401
        async with lab.session.post(lab.url(f"/page?shoal_token={token}"), data=b"x") as answer:
            assert (await answer.json())["path"] == "/page"


async def test_an_api_token_opens_tunnels_of_its_environment_and_goes_no_further(lab: Lab) -> None:
    async with lab.web(ANY):
        run, read = await lab.api_token(), await lab.api_token(Scope.READ)
        foreign, cluster = await lab.api_token(environment="dev"), await lab.api_token(environment="*")
        for token in (run, cluster):
            async with lab.session.get(lab.url(), headers={"Authorization": f"Bearer {token}"}) as answer:
                assert answer.status == 200
                assert "authorization" not in dict((await answer.json())["headers"])
        assert (await refused(lab, lab.url(), headers={"Authorization": f"Bearer {read}"}))[0] == 403
        there = await refused(lab, lab.url(), headers={"Authorization": f"Bearer {foreign}"})
        nowhere = await refused(
            lab, f"http://{lab.api}/t/sb-never/{PORT}/", headers={"Authorization": f"Bearer {foreign}"}
        )
        assert there == nowhere
        assert there[0] == 401
        own = {**lab.key, "Authorization": "Bearer the-application's-own"}
        async with lab.session.get(lab.url(), headers=own) as answer:
            assert dict((await answer.json())["headers"])["authorization"] == own["Authorization"]


async def test_who_may_know_is_told_what_is_wrong(lab: Lab) -> None:
    status, problem = await refused(lab, lab.url(port=9), headers={"X-Shoal-Connect-Token": lab.token(port=9)})
    assert (status, problem["code"]) == (404, "tunnel_not_found")
    await lab.fake.expose(lab.sandbox_id, 22, protocol="tcp", public=True)
    status, problem = await refused(lab, lab.url(port=22), headers={"X-Shoal-Connect-Token": lab.token(port=22)})
    assert (status, problem["code"]) in ((404, "tunnel_not_found"),)
    lab.fake.ports.pop(PORT)
    status, problem = await refused(lab, lab.url(), headers=lab.key)
    assert (status, problem["code"], problem["retryable"]) == (503, "unavailable", True)
    assert f"nothing listens on port {PORT}" in str(problem["detail"])
    async with lab.session.get(lab.url("/<script>"), headers={**lab.key, "Accept": "text/html,*/*"}) as answer:
        page = await answer.text()
        assert answer.content_type == "text/html"
        assert f"start your server there, on 127.0.0.1:{PORT}" in page
        assert "<script" not in page
    await lab.fake.terminate(lab.sandbox_id)
    status, problem = await refused(lab, lab.url(), headers=lab.key)
    assert (status, problem["code"]) == (410, SandboxEnded.code)


async def test_a_tunnel_is_there_for_its_holder_as_soon_as_it_is_opened(lab: Lab) -> None:
    async with lab.web(ANY):
        other = await lab.new_sandbox()
        url = f"http://{lab.api}/t/{other}/{PORT}/"
        key = {"X-Shoal-Connect-Token": lab.token(sandbox_id=other)}
        assert (await refused(lab, url, headers=key))[0] == 404
        await lab.fake.expose(other, PORT, protocol="http", public=False)
        async with lab.session.get(url, headers=key) as answer:
            assert answer.status == 200


async def test_a_tunnel_is_there_for_strangers_as_soon_as_it_is_public(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel_access, "DOUBTED_S", 0.0)
    async with lab.web(ANY):
        assert (await refused(lab, lab.url()))[0] == 401
        await lab.fake.expose(lab.sandbox_id, PORT, protocol="http", public=True)
        async with lab.session.get(lab.url()) as answer:
            assert answer.status == 200, "though a moment ago it was private"


async def test_a_public_tunnel_needs_nothing_and_closes_soon(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel_access, "KNOWN_S", 60.0)
    async with lab.web(ANY):
        await lab.fake.expose(lab.sandbox_id, PORT, protocol="http", public=True)
        asked = len(lab.fake.named("tunnels"))

        async def get() -> int:
            async with lab.session.get(lab.url()) as answer:
                return answer.status

        assert set(await asyncio.gather(*(get() for _ in range(50)))) == {200}
        assert len(lab.fake.named("tunnels")) - asked == 1
        for token, status in ((lab.token(), 303), ("wrong", 200)):
            async with lab.session.get(lab.url(f"/?shoal_token={token}"), allow_redirects=False) as answer:
                assert answer.status == status
        monkeypatch.setattr(tunnel_access, "KNOWN_S", 0.05)
        await lab.fake.unexpose(lab.sandbox_id, PORT)
        async with asyncio.timeout(20):  # a machine may stand still for seconds
            while await get() != 401:  # noqa: ASYNC110  # there is no other way to learn of it
                await asyncio.sleep(0.05)


async def test_both_directions_flow_as_they_come(lab: Lab) -> None:
    got: asyncio.Queue[bytes] = asyncio.Queue()

    async def talk(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        async for data in request.content.iter_any():
            await got.put(data)
            await answer.write(b"heard " + data)
        return answer

    async with lab.web(web.post("/", talk)):
        said: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def body() -> AsyncIterator[bytes]:
            while (data := await said.get()) is not None:
                yield data

        await said.put(b"one")
        async with asyncio.timeout(10), lab.session.post(lab.url(), data=body(), headers=lab.key) as answer:
            assert await got.get() == b"one"
            assert await answer.content.readany() == b"heard one"
            await said.put(b"two")
            assert await answer.content.readany() == b"heard two"
            await said.put(None)
            assert await answer.content.readany() == b""


async def test_large_bodies_arrive_whole(lab: Lab) -> None:
    piece = os.urandom(1 << 20)

    async def pieces(number: int) -> AsyncIterator[bytes]:
        for _ in range(number):
            yield piece

    async def swallow(request: web.Request) -> web.Response:
        digest = hashlib.sha256()
        async for data in request.content.iter_any():
            digest.update(data)
        return web.Response(text=digest.hexdigest())

    async def give(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={} if "chunked" in request.query else {"Content-Length": str(32 << 20)})
        await answer.prepare(request)
        for _ in range(32):
            await answer.write(piece)
        return answer

    expected = hashlib.sha256(piece * 32).hexdigest()
    async with lab.web(web.post("/", swallow), web.get("/", give)):
        async with lab.session.post(lab.url(), data=pieces(32), headers=lab.key) as answer:
            assert await answer.text() == expected
        for query in ("", "?chunked"):
            async with lab.session.get(lab.url(f"/{query}"), headers=lab.key) as answer:
                assert answer.headers.get("Content-Length") == (None if query else str(32 << 20))
                assert hashlib.sha256(await answer.read()).hexdigest() == expected


async def test_answers_without_a_body(lab: Lab) -> None:
    async def answer_with(request: web.Request) -> web.Response:
        status = int(request.match_info["status"])
        return web.Response(status=status, headers={"X-Kind": request.method}, text="text" if status == 200 else None)

    async with lab.web(web.route("*", "/{status}", answer_with)):
        for method, status in (("GET", 204), ("GET", 304), ("HEAD", 200), ("OPTIONS", 200), ("DELETE", 204)):
            async with lab.session.request(method, lab.url(f"/{status}"), headers=lab.key) as answer:
                assert (answer.status, answer.headers["X-Kind"]) == (status, method)
                assert await answer.read() == (b"text" if method == "OPTIONS" else b"")
                if method == "HEAD":
                    assert answer.headers["Content-Length"] == "4"


async def test_paths_and_cookies_stay_below_the_prefix(lab: Lab) -> None:
    async def go(request: web.Request) -> web.Response:
        answer = web.Response(status=302, headers={"Location": request.query["to"]})
        answer.set_cookie("sid", "1", path="/app", domain="127.0.0.1")
        answer.headers.add("Set-Cookie", "shoal_tunnel=mine; Path=/")
        for name in ("Service-Worker-Allowed", "Clear-Site-Data", "Strict-Transport-Security", "Alt-Svc"):
            answer.headers[name] = "/"
        answer.headers["Connection"] = "X-Hop"
        answer.headers["X-Hop"] = "1"
        return answer

    async with lab.web(web.get("/go", go)):
        prefix = f"/t/{lab.sandbox_id}/{PORT}"
        cases = {
            "/x?a=b#c": f"{prefix}/x?a=b#c",
            f"{prefix}/x": f"{prefix}/x",
            "x/y": "x/y",
            f"http://{lab.api}/x": f"{prefix}/x",
            f"http://{lab.api}": f"{prefix}/",
            f"http://localhost:{PORT}/x": f"{prefix}/x",
            f"http://localhost:{PORT}//evil.example/x": f"{prefix}//evil.example/x",
            "https://elsewhere.example/x": "https://elsewhere.example/x",
            "//elsewhere.example/x": "//elsewhere.example/x",
            f"{prefix}x": f"{prefix}{prefix}x",
        }
        for to, expected in cases.items():
            async with lab.session.get(
                lab.url("/go"), params={"to": to}, headers=lab.key, allow_redirects=False
            ) as answer:
                assert (answer.status, answer.headers["Location"]) == (302, expected)
                assert answer.headers.getall("Set-Cookie") == [f"sid=1; Path={prefix}/app"]
                dropped = {"Service-Worker-Allowed", "Clear-Site-Data", "Strict-Transport-Security", "Alt-Svc", "X-Hop"}
                assert dropped.isdisjoint(answer.headers)
    async with lab.session.get(lab.url("?a=1"), headers=lab.key, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (308, f"{prefix}/?a=1")


async def test_a_domain_of_their_own(tmp_path: Path) -> None:
    async with opened(tmp_path, tunnel_domain="tunnels.localhost", url="https://shoal.example") as lab, lab.web(ANY):
        host = f"{PORT}-{lab.sandbox_id}.tunnels.localhost"
        url = f"http://{lab.api}/v1/sandboxes"
        async with lab.session.get(url, headers={**lab.key, "Host": host}) as answer:
            seen = await answer.json()
            headers = dict(seen["headers"])
            assert (seen["path"], headers["host"], headers["x-forwarded-proto"]) == ("/v1/sandboxes", host, "https")
            assert "x-forwarded-prefix" not in headers
            assert "Content-Security-Policy" not in answer.headers
        link = f"{url}?shoal_token={lab.token()}"
        async with lab.session.get(link, headers={"Host": host}, allow_redirects=False) as answer:
            assert answer.headers["Location"] == "/v1/sandboxes"
            assert {"Path=/", "Secure"} <= set(answer.headers["Set-Cookie"].split("; "))
        link = f"http://{lab.api}//evil.example/?shoal_token={lab.token()}"
        async with lab.session.get(link, headers={"Host": host}, allow_redirects=False) as answer:
            assert answer.headers["Location"] == "/evil.example/"
        # By path a page shares the API's origin; where that can be helped it gets none.
        async with lab.session.get(lab.url(), headers=lab.key) as answer:
            assert answer.headers["Content-Security-Policy"].startswith("sandbox ")
        assert (await refused(lab, f"http://{lab.api}/", headers={"Host": host.replace("sb-", "sb-z")}))[0] == 401
        async with lab.session.get(f"http://{lab.api}/none", headers={"Host": "tunnels.localhost"}) as answer:
            assert answer.status == 404


# What answers is hostile


async def hostile(lab: Lab, said: bytes, *, stay: bool = False) -> tuple[int, dict[str, object]]:
    """What a client is told of a server that says `said` and hangs up, or stays."""
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            writer.write(said)
            await writer.drain()
            if stay:
                await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()
            left.set()

    async with lab.raw(serve), asyncio.timeout(20):
        answer = await refused(lab, lab.url(), headers=lab.key)
        await left.wait()
        return answer


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        random.Random(1).randbytes(4096),
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20),
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000,
        b"HTTP/1.1 999 Never\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBad\x00Name: 1\r\n\r\n",
    ],
    ids=lambda said: repr(said[:30]),
)
async def test_what_is_no_http_is_told_so(lab: Lab, said: bytes) -> None:
    status, problem = await hostile(lab, said)
    assert (status, problem["code"], problem["retryable"]) == (503, "unavailable", False)
    assert f"port {PORT}" in str(problem["detail"])


async def test_headers_that_drip_are_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel_http, "HEADERS_S", 0.2)
    status, problem = await hostile(lab, b"HTTP/1.1 200 OK\r\nX-Sl", stay=True)
    assert (status, problem["code"]) == (503, "unavailable")
    monkeypatch.setattr(tunnel_http, "ANSWER_S", 0.2)
    status, problem = await hostile(lab, b"", stay=True)
    assert "did not answer in time" in str(problem["detail"])


async def test_an_answer_cut_short_is_seen_to_be(lab: Lab) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chunked = b"chunked" in await reader.readuntil(b"\r\n\r\n")
        length = b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n" if chunked else b"Content-Length: 10\r\n\r\nhello"
        writer.write(b"HTTP/1.1 200 OK\r\n" + length)
        writer.close()

    async with lab.raw(serve):
        for path in ("/", "/chunked"):
            async with lab.session.get(lab.url(path), headers=lab.key) as answer:
                assert answer.status == 200
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.read()


async def test_a_plain_old_server_ends_its_answer_by_hanging_up(lab: Lab) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\n" + b"x" * 100_000)
        writer.close()

    async with lab.raw(serve), lab.session.get(lab.url(), headers=lab.key) as answer:
        assert answer.headers["Server"] == "old"
        assert await answer.read() == b"x" * 100_000


async def test_trailers_are_dropped_and_the_body_is_whole(lab: Lab) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
        writer.write(head + b"1\r\na\r\n" * 2000 + b"0\r\nX-Sum: 1\r\n\r\n")
        await reader.read()
        writer.close()

    async with lab.raw(serve), lab.session.get(lab.url(), headers=lab.key) as answer:
        assert await answer.read() == b"a" * 2000
        assert "Trailer" not in answer.headers


async def test_a_client_that_leaves_ends_the_connection_inside(lab: Lab) -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await reader.read()
        gone.set()
        writer.close()

    async with lab.raw(serve), asyncio.timeout(10):
        async with lab.session.get(lab.url(), headers=lab.key) as answer:
            assert await answer.content.readany() == b"data: 1\n\n"
            answer.close()
        await gone.wait()


async def test_a_server_that_refuses_a_body_gets_none_of_it(lab: Lab) -> None:
    got = bytearray()
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        got.extend(await reader.read())
        closed.set()
        writer.close()

    async with lab.raw(serve), asyncio.timeout(10):
        async with lab.session.put(lab.url(), data=b"x" * 100_000, headers=lab.key, expect100=True) as answer:
            assert answer.status == 413
        await closed.wait()
    assert not got

    async with lab.web(ANY), lab.session.put(lab.url(), data=b"xyz", headers=lab.key, expect100=True) as answer:
        assert (await answer.json())["body"] == hashlib.sha256(b"xyz").hexdigest()
