"""Who gets in, and what they get to see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from shoal.cluster.api.access import auth, failure_bound
from shoal.cluster.api.access.auth import TokenCache, check_local, verify
from shoal.cluster.api.access.failure_bound import BURST, FailureBound
from shoal.cluster.api.app import make_app
from shoal.model import verbs
from shoal.model.access import Scope, StoredToken, TokenInfo, mint
from shoal.model.errors import InvalidRequest, PermissionDenied, QuotaExceeded, Unauthenticated, Unavailable
from shoal.model.settings import ApiSettings, Settings
from shoal.model.verbs import Verb
from tests.api import Answer, Api, serving
from tests.fakes.cluster import FakeTransport


def refused(answer: Answer) -> None:
    assert (answer.status, answer.json["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def until_refused(api: Api, token: str) -> None:
    end = time.monotonic() + 20  # a machine may stand still for seconds
    while (answer := api.ask("GET", "/v1/defaults", token=token)).status == 200:
        assert time.monotonic() < end
    refused(answer)


class TestTokens:
    @pytest.mark.parametrize(
        "header",
        [
            None, "", "Bearer", "Bearer ", "Bearer x", "Basic dXNlcjpwYXNz", f"Bearer {mint()[1]}",
            "Bearer shoal_tk-x_y",
            "Bearer é" + mint()[1], mint()[1],
        ],
        ids=["none", "empty", "no-value", "blank", "short", "basic", "unknown", "no-secret", "not-ascii", "no-scheme"],
    )  # fmt: skip
    def test_without_a_right_one_nobody_gets_in(self, api: Api, header: str | None) -> None:
        headers = {} if header is None else {"Authorization": header.encode("latin-1").decode("latin-1")}
        refused(api.ask("GET", "/v1/sandboxes", token=None, headers=headers))

    def test_a_right_id_with_a_wrong_secret_is_refused(self, api: Api) -> None:
        id_part = api.root.rpartition("_")[0]
        refused(api.ask("GET", "/v1/sandboxes", token=f"{id_part}_{'a' * 32}"))

    def test_one_without_a_checksum_is_still_good(self, api: Api) -> None:
        assert api.ask("GET", "/v1/defaults", token=api.root[:-6]).status == 200

    def test_a_mistyped_one_is_refused_without_a_lookup(self, api: Api) -> None:
        before = len(api.fake.named("stored_token"))
        wrong = api.root[:-7] + ("a" if api.root[-7] != "a" else "b") + api.root[-6:]
        refused(api.ask("GET", "/v1/defaults", token=wrong))
        refused(api.ask("GET", "/v1/defaults", token=mint()[1][:-6] + "000000"))
        assert len(api.fake.named("stored_token")) == before

    def test_the_scheme_may_be_written_any_way(self, api: Api) -> None:
        assert (
            api.ask("GET", "/v1/defaults", token=None, headers={"Authorization": f"bEARER  {api.root}"}).status == 200
        )

    def test_who_is_refused_is_so_before_the_body_is_looked_at(self, api: Api) -> None:
        refused(api.ask("POST", "/v1/sandboxes", raw=b"{" * 10, token=None))
        reader = api.token("main", Scope.READ)
        assert api.ask("POST", "/v1/sandboxes?what=1", raw=b"{", token=reader).status == 403

    def test_an_expired_one_is_refused(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        token = api.token("main", Scope.READ, expires_in=60)
        assert api.ask("GET", "/v1/defaults", token=token).status == 200
        later = SimpleNamespace(monotonic=time.monotonic, time=lambda: time.time() + 61)
        monkeypatch.setattr(auth, "time", later)
        refused(api.ask("GET", "/v1/defaults", token=token))

    def test_a_revoked_one_is_refused(self, api: Api) -> None:
        made = api.ask("POST", "/v1/tokens", {"name": "t", "scope": "read"}).json
        assert api.ask("GET", "/v1/defaults", token=made["token"]).status == 200
        gone = api.ask("DELETE", f"/v1/tokens/{made['id']}")
        assert (gone.status, gone.json["revoked_at"] is not None) == (200, True)
        refused(api.ask("GET", "/v1/defaults", token=made["token"]))

    def test_one_revoked_elsewhere_is_refused_soon(self, api: Api) -> None:
        made = api.ask("POST", "/v1/tokens", {"name": "t", "scope": "read"}).json
        assert api.ask("GET", "/v1/defaults", token=made["token"]).status == 200
        api.run(api.fake.ask(verbs.revoke_token, made["id"]))
        until_refused(api, made["token"])

    def test_while_the_controller_is_away_the_unknown_may_come_again(self, api: Api) -> None:
        token = api.ask("POST", "/v1/tokens", {"name": "t"}).json["token"]
        api.fake.fail_next("stored_token", Unavailable("the controller restarts"))
        assert api.ask("GET", "/v1/defaults", token=token).status == 503
        assert api.ask("GET", "/v1/defaults", token=token).status == 200


class TestWebSockets:
    """The same holds for a WebSocket: it is refused before it is accepted, with a problem document."""

    def connect(self, api: Api, headers: dict[str, str], *protocols: str) -> tuple[int, str | None]:
        """The status of the handshake, and the subprotocol that was agreed on."""

        async def attempt() -> tuple[int, str | None]:
            path = f"{api.url}/v1/sandboxes/{made['id']}/ports/7"
            async with aiohttp.ClientSession() as session:
                try:
                    async with session.ws_connect(path, headers=headers, protocols=protocols) as ws:
                        return 101, ws.protocol
                except aiohttp.WSServerHandshakeError as error:
                    return error.status, None

        made = api.sandbox()
        return asyncio.run(attempt())

    def test_with_a_header_or_as_browsers_send_it(self, api: Api) -> None:
        token = api.token("main", Scope.RUN)
        assert self.connect(api, {"Authorization": f"Bearer {token}"}) == (101, None)
        assert self.connect(api, {}, "shoal.v1", f"shoal.bearer.{token}") == (101, "shoal.v1")

    def test_without_a_right_token_the_handshake_is_refused(self, api: Api) -> None:
        assert self.connect(api, {})[0] == 401
        assert self.connect(api, {"Authorization": f"Bearer {mint()[1]}"})[0] == 401
        assert self.connect(api, {}, "shoal.v1", "shoal.bearer.nothing")[0] == 401
        assert self.connect(api, {"Authorization": f"Bearer {api.token('main', Scope.READ)}"})[0] == 403

    def test_who_connected_is_in_the_audit_log_while_it_lasts(self, api: Api) -> None:
        token = api.token("main", Scope.RUN)
        self.connect(api, {"Authorization": f"Bearer {token}"})
        self.connect(api, {"Authorization": f"Bearer {api.token('main', Scope.READ)}"})
        api.run(api.app.state.usage_reporter.flush())
        entries = api.ask("GET", "/v1/audit").json["entries"]
        told = [(e["action"], e["outcome"], e["token"]) for e in entries if e["action"] == "connect.port"]
        assert ("connect.port", "ok", token.split("_")[1]) in told


class TestFailures:
    @pytest.fixture
    def own(self) -> Iterator[Api]:
        with serving() as served:
            yield served

    def test_too_many_are_told_to_wait_and_valid_ones_pass(self, own: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(failure_bound, "BURST", 5)
        monkeypatch.setattr(failure_bound, "PER_S", 0.01)  # as fast as a slow machine sends them
        assert own.ask("GET", "/v1/defaults").status == 200
        answers = [own.ask("GET", "/v1/defaults", token=mint()[1]) for _ in range(7)]
        assert [answer.status for answer in answers] == [401] * 5 + [429] * 2
        late = answers[-1]
        assert late.json["code"] == "quota_exceeded"
        assert 50 < int(late.headers["retry-after"]) <= 100
        assert own.ask("GET", "/v1/defaults").status == 200, "one that is known"
        new = own.token("main", Scope.READ)
        assert own.ask("GET", "/v1/defaults", token=new).status == 200, "one that was just made"
        assert own.ask("GET", "/v1/defaults", token=mint()[1]).status == 429
        assert len(set(own.fake.named("stored_token"))) == 5 + 2, "no further guess was looked up"


class TestFailureBound:
    def bound(self) -> FailureBound:
        self.now = 100.0
        return FailureBound(lambda: self.now)

    def test_it_is_per_address_and_recovers(self) -> None:
        bound = self.bound()
        assert [bound.note("192.0.2.1") for _ in range(BURST)] == [0.0] * BURST
        assert bound.note("192.0.2.1") == bound.wait_s("192.0.2.1") == 1.0
        assert bound.wait_s("192.0.2.2") == 0.0
        for _ in range(10_000):
            bound.note("192.0.2.1")
        assert bound.wait_s("192.0.2.1") == 1.0, "more of them make nobody wait longer"
        self.now += 1.0
        assert bound.wait_s("192.0.2.1") == 0.0
        self.now += 1000.0
        assert [bound.note("192.0.2.1") for _ in range(BURST + 1)][-1] == 1.0

    def test_an_ipv6_client_is_its_network(self) -> None:
        bound = self.bound()
        for number in range(BURST):
            bound.note(f"2001:db8::{number:x}")
        assert bound.wait_s("2001:db8::ffff") > 0
        assert bound.wait_s("2001:db8:0:1::1") == 0
        assert bound.wait_s(None) == 0

    def test_its_memory_is_bounded(self) -> None:
        bound = self.bound()
        for number in range(20_000):
            bound.note(f"10.0.{number // 256}.{number % 256}")
        assert len(bound._left) == 10_000


class Side:
    """A replica's side that counts, and answers when it is let."""

    def __init__(self, *stored: StoredToken) -> None:
        self.asked: list[str] = []
        self.stored = {token.info.id: token for token in stored}
        self.gate = asyncio.Event()
        self.gate.set()
        self.away = False

    async def ask(self, verb: Verb[..., Any], token_id: str = "") -> Any:
        if verb is verbs.token_ids:
            self.asked.append("all")
            await self.gate.wait()
            return list(self.stored)
        assert verb is verbs.stored_token
        self.asked.append(token_id)
        await self.gate.wait()
        if self.away:
            raise Unavailable("it restarts")
        return self.stored.get(token_id)


def stored() -> StoredToken:
    token_id, _, digest = mint()
    return StoredToken(TokenInfo(token_id, "", "main", Scope.READ, 0.0), digest)


@pytest.mark.anyio
class TestCache:
    async def test_many_at_once_cost_one_question(self) -> None:
        token = stored()
        side: Any = Side(token)
        side.gate.clear()
        cache = TokenCache(side, 60)
        asking = [asyncio.create_task(cache.get(token.info.id)) for _ in range(50)]
        await asyncio.sleep(0)
        side.gate.set()
        assert await asyncio.gather(*asking) == [token] * 50
        assert await cache.get(token.info.id) == token
        assert side.asked == [token.info.id]

    async def test_that_there_is_none_is_remembered_too(self) -> None:
        side: Any = Side()
        cache = TokenCache(side, 60)
        assert [await cache.get("tk-x") for _ in range(3)] == [None] * 3
        assert side.asked == ["tk-x"]

    async def test_a_caller_that_goes_takes_the_question_from_nobody(self) -> None:
        token = stored()
        side: Any = Side(token)
        side.gate.clear()
        cache = TokenCache(side, 60)
        first, second = (asyncio.create_task(cache.get(token.info.id)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        side.gate.set()
        assert await second == token

    async def test_one_in_use_is_asked_for_again_while_nobody_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 100.0
        monkeypatch.setattr(auth, "time", SimpleNamespace(monotonic=lambda: now))
        token = stored()
        side: Any = Side(token)
        cache = TokenCache(side, 0.4)
        await cache.get(token.info.id)
        now += 0.25
        side.gate.clear()
        assert await cache.get(token.info.id) == token
        await asyncio.sleep(0)
        assert len(side.asked) == 2
        side.gate.set()

    async def test_while_nobody_can_tell_a_good_one_is_good(self) -> None:
        token = stored()
        side: Any = Side(token)
        cache = TokenCache(side, 0)
        assert await cache.get(token.info.id) == token
        side.away = True
        assert [await cache.get(token.info.id) for _ in range(3)] == [token] * 3
        with pytest.raises(Unavailable):
            await cache.get("tk-never-seen")
        side.away = False
        side.stored.clear()
        assert await cache.get(token.info.id) is None
        side.away = True
        with pytest.raises(Unavailable):
            await cache.get(token.info.id)

    async def test_nor_is_a_silent_controller_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(auth, "_ANSWER_S", 0.01)
        token = stored()
        side: Any = Side(token)
        cache = TokenCache(side, 0)
        await cache.get(token.info.id)
        side.gate.clear()
        async with asyncio.timeout(20):  # a machine may stand still for seconds
            assert [await cache.get(token.info.id) for _ in range(50)] == [token] * 50
        assert len(side.asked) == 2
        side.stored.clear()
        side.gate.set()
        while await cache.get(token.info.id) is not None:  # noqa: ASYNC110  # as soon as it answers
            await asyncio.sleep(0)

    async def test_but_not_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(auth, "TRUST_S", 0.0)
        token = stored()
        side: Any = Side(token)
        cache = TokenCache(side, 0)
        await cache.get(token.info.id)
        side.away = True
        with pytest.raises(Unavailable):
            await cache.get(token.info.id)

    async def test_its_size_is_bounded_and_guesses_push_out_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shoal.cluster.api.access.auth._MOST_TOKENS", 10)
        token = stored()
        side: Any = Side(token)
        cache = TokenCache(side, 60)
        await cache.get(token.info.id)
        for number in range(100):
            await cache.get(f"tk-{number}")
        side.asked.clear()
        assert await cache.get(token.info.id) == token
        assert await cache.get("tk-99") is None
        assert side.asked == []
        await cache.get("tk-0")
        assert side.asked == ["tk-0"]


@pytest.mark.anyio
class TestGuesses:
    async def test_from_one_address_they_cost_one_list_a_second_and_no_valid_one_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(auth, "_LIST_EVERY_S", 0.2)
        side: Any = Side()
        cache = TokenCache(side, 60)
        for _ in range(BURST):
            cache.failures.note("192.0.2.1")

        async def guess() -> type[Exception] | None:
            try:
                await verify(cache, mint()[1], "192.0.2.1")
            except (QuotaExceeded, Unauthenticated) as error:
                return type(error)
            return None

        began = time.monotonic()
        for _ in range(3):
            guesses = [asyncio.create_task(guess()) for _ in range(100)]
            await asyncio.sleep(0)
            token_id, text, digest = mint()
            side.stored[token_id] = StoredToken(TokenInfo(token_id, "", "main", Scope.READ, 0.0), digest)
            assert (await verify(cache, text, "192.0.2.1")).id == token_id
            assert set(await asyncio.gather(*guesses)) <= {QuotaExceeded, Unauthenticated}
        lists = side.asked.count("all")
        assert 3 <= lists <= 1 + (time.monotonic() - began) / 0.2
        assert len(side.asked) - lists == 3, "only those that exist were looked up"


class TestScoping:
    """A token of one environment sees nothing of another: not even that a name exists."""

    @pytest.fixture
    def foreign(self, api: Api) -> dict[str, Any]:
        return api.sandbox(name="secret", environment="dev")

    def test_a_foreign_sandbox_is_as_one_that_never_was(self, api: Api, foreign: dict[str, Any]) -> None:
        token = api.token("main", Scope.ADMIN)
        never = "sb-" + "a" * len(foreign["id"].removeprefix("sb-"))
        for method, path, body in [
            ("GET", "", None), ("DELETE", "", None), ("PUT", "/tags", {"tags": {}}), ("GET", "/wait?timeout=0", None),
            ("GET", "/events", None), ("GET", "/events?follow=false", None), ("GET", "/logs", None),
            ("POST", "/exec", {"argv": ["true"]}), ("GET", "/stat?path=/", None), ("GET", "/processes", None),
        ]:  # fmt: skip
            there, nowhere = (
                api.ask(method, f"/v1/sandboxes/{i}{path}", body, token=token) for i in (foreign["id"], never)
            )
            assert there.status == nowhere.status == 404, path
            assert there.json["code"] == "sandbox_not_found"
            assert strip(there, foreign["id"]) == strip(nowhere, never)
        assert api.ask("GET", f"/v1/sandboxes/{foreign['id']}").json["state"] == "running"

    def test_a_foreign_environment_is_as_none(self, api: Api, foreign: dict[str, Any]) -> None:
        token = api.token("main", Scope.ADMIN)
        for method, path, body in [
            ("GET", "/v1/sandboxes?environment={}", None), ("GET", "/v1/sandboxes/by-name/secret?environment={}", None),
            ("GET", "/v1/environments/{}", None),
            ("GET", "/v1/events?environment={}", None), ("GET", "/v1/events?follow=false&environment={}", None),
            ("POST", "/v1/sandboxes", {"environment": "{}"}), ("POST", "/v1/tokens", {"name": "x",
            "environment": "{}"}),
        ]:  # fmt: skip
            there, nowhere = (
                api.ask(method, path.format(e), body and {k: v.format(e) for k, v in body.items()}, token=token)
                for e in ("dev", "xyz")
            )
            assert there.status == nowhere.status == 404, path
            assert there.json["code"] == "environment_not_found"
            assert strip(there, "dev") == strip(nowhere, "xyz")

    def test_listings_hold_only_its_own(self, api: Api, foreign: dict[str, Any]) -> None:
        token = api.token("main", Scope.ADMIN)
        own = api.sandbox(token=token, name="secret")
        api.token("dev", Scope.READ)
        assert own["environment"] == "main"
        assert [s["id"] for s in api.ask("GET", "/v1/sandboxes", token=token).json["sandboxes"]] == [own["id"]]
        assert api.ask("GET", "/v1/sandboxes/by-name/secret", token=token).json["id"] == own["id"]
        assert [e["name"] for e in api.ask("GET", "/v1/environments", token=token).json["environments"]] == ["main"]
        assert {t["environment"] for t in api.ask("GET", "/v1/tokens", token=token).json["tokens"]} == {"main"}
        events = api.ask("GET", "/v1/events?follow=false", token=token).json["events"]
        assert {event["sandbox_id"] for event in events} == {own["id"]}
        # Whoever reports asks for the entries only once they are there.
        api.run(api.app.state.usage_reporter.flush())
        entries = api.ask("GET", "/v1/audit", token=token).json["entries"]
        assert {entry["target"] for entry in entries if entry["action"] == "sandbox.create"} == {own["id"]}
        everything = api.ask("GET", "/v1/audit").json["entries"]
        assert foreign["id"] in {entry["target"] for entry in everything}

    def test_foreign_tokens_are_as_none(self, api: Api) -> None:
        token = api.token("main", Scope.ADMIN)
        other = api.ask("POST", "/v1/tokens", {"name": "x", "environment": "dev"}).json
        never = "tk-" + "a" * 16
        there, nowhere = (api.ask("DELETE", f"/v1/tokens/{i}", token=token) for i in (other["id"], never))
        assert there.status == nowhere.status == 404
        assert strip(there, other["id"]) == strip(nowhere, never)
        assert api.ask("GET", "/v1/defaults", token=other["token"]).status == 200

    def test_what_is_the_whole_clusters_is_not_an_environments(self, api: Api) -> None:
        token = api.token("main", Scope.ADMIN)
        for method, path, body in [
            ("POST", "/v1/environments", {"name": "new"}),
            ("DELETE", "/v1/environments/main", None),
            ("POST", "/v1/tokens", {"name": "x", "environment": "*"}),
            ("GET", "/metrics", None),
            ("GET", "/v1/nodes", None),
            ("PUT", "/v1/environments/main/quota", {}),
            ("PUT", "/v1/environments/dev/quota", {}),
        ]:
            assert api.ask(method, path, body, token=token).status == 403, path


def strip(answer: Answer, name: str) -> str:
    """A problem without its request id, and with what was asked for taken out."""
    problem = {key: value for key, value in answer.json.items() if key != "request_id"}
    return str(problem).replace(name, "…")


class TestOff:
    @pytest.fixture
    def local(self) -> Iterator[Api]:
        with serving(ApiSettings(auth=False)) as served:
            yield served

    @pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "example.com", "::", ""])
    def test_only_where_nobody_else_can_reach_it(self, host: str) -> None:
        fake = FakeTransport()
        with pytest.raises(InvalidRequest) as caught:
            make_app(fake, Settings(api=ApiSettings(auth=False, host=host)))
        assert caught.value.field == "api.auth"

    def test_everybody_may_do_everything(self, local: Api) -> None:
        assert local.ask("POST", "/v1/sandboxes", {}, token=None).status == 201
        assert local.ask("GET", "/v1/tokens/self", token=None).json["scope"] == "admin"
        assert local.ask("POST", "/v1/environments", {"name": "new"}, token=None).status == 201

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"Host": "localhost:8000"}, 200),
            ({"Host": "[::1]:8000"}, 200),
            ({"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000"}, 200),
            ({"Host": "evil.example"}, 403),
            ({"Host": "127.0.0.1.evil.example:8000"}, 403),
            ({"Host": "localhost:8000", "Origin": "http://evil.example"}, 403),
            ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 403),
            ({"Host": "localhost:8000", "Origin": "http://8080-sb-a.localhost:8000"}, 403),
            ({"Host": "localhost:8000", "Origin": "null"}, 403),
        ],
        ids=repr,
    )
    def test_what_other_sites_make_browsers_send_is_refused(
        self, local: Api, headers: dict[str, str], status: int
    ) -> None:
        answer = local.ask("GET", "/v1/defaults", token=None, headers=headers)
        assert answer.status == status
        assert "x-request-id" in answer.headers

    def test_two_hosts_are_none(self) -> None:
        with pytest.raises(PermissionDenied):
            check_local([(b"host", b"localhost"), (b"host", b"evil.example")])
