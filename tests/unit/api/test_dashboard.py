"""The dashboard's page and files, and browsers' sessions: who gets one, what ends it, and that no other site uses
it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from shoal.actors.controller.sign_ins import LASTS_S, SignIns
from shoal.cluster.api.access import sessions
from shoal.cluster.dashboard import pages
from shoal.model import verbs
from shoal.model.access import Caller, Scope, split
from shoal.model.errors import FailedPrecondition, Unauthenticated
from shoal.model.settings import ApiSettings
from tests.api import Answer, Api, serving

SECRET = b"s" * 32
TOKEN = "tk-" + "a" * 16


class Browser:
    """Keeps the cookie, and says where its requests come from."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.origin = f"http://127.0.0.1:{api.port}"
        self.cookie = ""

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        said = {"Sec-Fetch-Site": "same-origin", "Origin": self.origin, "Cookie": self.cookie, **headers}
        sent = {name.replace("_", "-"): value for name, value in said.items() if value}
        answer = self.api.ask(method, path, body, token=None, headers=sent)
        if "set-cookie" in answer.headers:
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return answer

    def sign_in(self, **by: str) -> Answer:
        return self.ask("POST", "/v1/session", by)


@pytest.fixture
def browser(api: Api) -> Browser:
    return Browser(api)


def code_of(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json["code"]


class TestSessions:
    def test_a_token_opens_one_that_no_script_can_read(self, api: Api, browser: Browser) -> None:
        answer = browser.sign_in(token=api.root)
        assert answer.status == 200
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"} <= {
            part.strip() for part in cookie.split(";")
        }
        assert api.root.split("_")[2] not in cookie
        assert browser.ask("GET", "/v1/tokens/self").json["id"] == answer.json["id"]

    def test_what_is_no_token_opens_none(self, browser: Browser) -> None:
        answer = browser.sign_in(token="shoal_tk-x")
        assert code_of(answer) == (401, "unauthenticated")
        assert "set-cookie" not in answer.headers

    def test_scope_and_environment_are_the_tokens(self, api: Api, browser: Browser) -> None:
        browser.sign_in(token=api.token("dev", Scope.READ))
        assert code_of(browser.ask("POST", "/v1/sandboxes", {})) == (403, "permission_denied")
        assert browser.ask("GET", "/v1/sandboxes?environment=main").status == 404

    def test_signing_out_removes_the_cookie(self, api: Api, browser: Browser) -> None:
        browser.sign_in(token=api.root)
        assert "Max-Age=0" in browser.ask("DELETE", "/v1/session").headers["set-cookie"]
        assert code_of(browser.ask("GET", "/v1/sandboxes")) == (401, "unauthenticated")

    def test_revoking_the_token_ends_it(self, api: Api, browser: Browser) -> None:
        _, text = api.run(api.fake.ask(verbs.create_token, "short", "*", Scope.ADMIN, None))
        browser.sign_in(token=text)
        found = split(text)
        assert found is not None
        assert browser.ask("DELETE", f"/v1/tokens/{found[0]}").status == 200
        assert code_of(browser.ask("GET", "/v1/sandboxes")) == (401, "unauthenticated")

    @pytest.mark.parametrize(
        "text", ["", TOKEN, f"{TOKEN}.9999999999.{'A' * 43}", sessions.sign(b"x" * 32, TOKEN, 1 << 33), "é"]
    )
    def test_a_made_up_one_is_refused(self, api: Api, browser: Browser, text: str) -> None:
        browser.cookie = f"{sessions.COOKIE}_{api.port}={text}"
        assert code_of(browser.ask("GET", "/v1/sandboxes")) == (401, "unauthenticated")

    def test_it_ends_with_its_time(self) -> None:
        text = sessions.sign(SECRET, TOKEN, 100)
        assert sessions.read(SECRET, text, 99.9) == TOKEN
        assert sessions.read(SECRET, text, 100.0) is None
        assert sessions.read(SECRET, text.replace(".100.", ".200."), 99.9) is None

    def test_a_token_in_the_header_goes_before_it(self, api: Api, browser: Browser) -> None:
        browser.sign_in(token=api.token("dev", Scope.READ))
        answer = browser.ask("GET", "/v1/tokens/self", Authorization=f"Bearer {api.root}")
        assert answer.json["environment"] == "*"


class TestOtherSites:
    @pytest.mark.parametrize("site", ["cross-site", "same-site", "none"])
    def test_their_requests_do_not_count(self, api: Api, browser: Browser, site: str) -> None:
        browser.sign_in(token=api.root)
        assert code_of(browser.ask("GET", "/v1/sandboxes", Sec_Fetch_Site=site)) == (403, "permission_denied")

    @pytest.mark.parametrize("origin", ["", "null", "http://evil.example", "http://127.0.0.1:1"])
    def test_changes_need_the_pages_own_origin(self, api: Api, browser: Browser, origin: str) -> None:
        browser.sign_in(token=api.root)
        made = browser.ask("POST", "/v1/sandboxes", {}, Origin=origin, Sec_Fetch_Site="")
        assert code_of(made) == (403, "permission_denied")
        assert not api.fake.named("create")
        assert browser.ask("GET", "/v1/sandboxes", Origin=origin, Sec_Fetch_Site="").status == 200

    @pytest.mark.parametrize(
        "said",
        [
            {"Origin": ""},
            {"Origin": "null"},
            {"Origin": "http://evil.example"},
            {"Origin": "http://127.0.0.1:1"},
            {"Origin": "http://127.0.0.1"},
            {"Origin": "http://127.0.0.1.evil.example"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "Same-Origin"},
        ],
        ids=lambda said: str(*said.values()),
    )
    def test_no_route_that_changes_something_takes_their_word(
        self, api: Api, browser: Browser, said: dict[str, str]
    ) -> None:
        browser.sign_in(token=api.root)
        calls = len(api.fake.calls)
        said = {"Sec_Fetch_Site": "", **said}
        tried = 0
        for route in api.app.routes:
            for method in getattr(route, "methods", None) or ():
                if method in ("GET", "HEAD", "OPTIONS"):
                    continue
                path = re.sub(r"{(\w+)(:\w+)?}", "sb-" + "a" * 16, getattr(route, "path", "/"))
                answer = browser.ask(method, path, {}, **{"Origin": browser.origin, **said})
                assert code_of(answer) == (403, "permission_denied"), (method, path)
                tried += 1
        assert tried > 60
        heard = {name for name, _ in api.fake.calls[calls:]}
        assert heard <= {"report"}, "the controller hears of none but as denied"

    def test_nobody_is_signed_in_from_elsewhere(self, api: Api, browser: Browser) -> None:
        answer = browser.ask(
            "POST", "/v1/session", {"token": api.root}, Origin="http://evil.example", Sec_Fetch_Site=""
        )
        assert code_of(answer) == (403, "permission_denied")

    @pytest.mark.parametrize(
        ("origin", "status"), [(None, 403), ("null", 403), ("http://evil.example", 403), ("own", 101)]
    )
    def test_a_websocket_needs_it_too(self, api: Api, browser: Browser, origin: str | None, status: int) -> None:
        sandbox = api.sandbox()
        browser.sign_in(token=api.root)

        async def handshake() -> int:
            headers = {"Cookie": browser.cookie}
            if origin is not None:
                headers["Origin"] = browser.origin if origin == "own" else origin
            async with aiohttp.ClientSession() as client:
                try:
                    async with client.ws_connect(f"{api.url}/v1/sandboxes/{sandbox['id']}/attach", headers=headers):
                        return 101
                except aiohttp.WSServerHandshakeError as error:
                    return error.status

        assert asyncio.run(handshake()) == status


class TestLinks:
    def test_a_code_signs_in_once(self, api: Api, browser: Browser) -> None:
        token = api.token("dev", Scope.READ)
        code = api.ask("POST", "/v1/session/codes", token=token).json["code"]
        assert browser.sign_in(code=code).json["environment"] == "dev"
        other = Browser(api)
        assert code_of(other.sign_in(code=code)) == (401, "unauthenticated")
        assert other.cookie == ""

    def test_a_link_does_not_replace_the_session_of_another_token(self, api: Api, browser: Browser) -> None:
        """Who sends somebody a link of his own would else have him work, and leave secrets, under a foreign token."""
        foreign = api.token("dev", Scope.READ)
        browser.sign_in(token=api.root)
        code = api.ask("POST", "/v1/session/codes", token=foreign).json["code"]
        assert code_of(browser.sign_in(code=code)) == (409, "failed_precondition")
        assert browser.ask("GET", "/v1/tokens/self").json["environment"] == "*"
        own = api.ask("POST", "/v1/session/codes").json["code"]
        assert browser.sign_in(code=own).status == 200
        browser.ask("DELETE", "/v1/session")
        code = api.ask("POST", "/v1/session/codes", token=foreign).json["code"]
        assert browser.sign_in(code=code).json["environment"] == "dev"

    def test_codes_that_are_guessed_are_bounded(self, browser: Browser) -> None:
        answers = [browser.sign_in(code="x").status for _ in range(60)]
        assert answers[0] == 401
        assert answers[-1] == 429

    def test_a_code_lasts_ten_minutes(self) -> None:
        now = 1000.0
        made = SignIns(SECRET, lambda: now)
        first, second = (made.make(Caller(token=TOKEN)).code for _ in range(2))
        now += LASTS_S - 1
        assert made.redeem(first) == TOKEN
        now += 2
        with pytest.raises(Unauthenticated):
            made.redeem(second)
        with pytest.raises(FailedPrecondition):
            made.make(Caller())

    def test_a_thousand_are_kept(self) -> None:
        made = SignIns(SECRET)
        codes = [made.make(Caller(token=TOKEN)).code for _ in range(1001)]
        with pytest.raises(Unauthenticated):
            made.redeem(codes[0])
        assert made.redeem(codes[1]) == TOKEN


@pytest.fixture
def built(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As the build leaves it, without a build."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text('<script src="%ROOT%assets/main-A1.js" nonce="%NONCE%"></script>')
    (tmp_path / "assets" / "main-A1.js").write_text("1")
    (tmp_path / "assets" / "main-A1.js.gz").write_bytes(b"packed")
    (tmp_path / "secret.js").write_text("no")
    monkeypatch.setattr(pages, "STATIC", tmp_path)
    pages._index.cache_clear()
    yield
    pages._index.cache_clear()


@pytest.mark.usefixtures("built")
class TestPages:
    @pytest.mark.parametrize(
        ("path", "root"), [("/", "./"), ("/e/main/sandboxes?state=ended", "../../"), ("/cluster/nodes", "../")]
    )
    def test_every_address_gives_the_page(self, api: Api, path: str, root: str) -> None:
        answer = api.ask("GET", path, token=None)
        assert answer.status == 200
        assert f'src="{root}assets/main-A1.js"'.encode() in answer.body
        policy = answer.headers["content-security-policy"]
        nonce = answer.body.decode().split('nonce="')[1].split('"')[0]
        assert f"style-src 'self' 'nonce-{nonce}'" in policy
        assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy.split("; "))
        assert "unsafe" not in policy
        assert (answer.headers["x-content-type-options"], answer.headers["cache-control"]) == ("nosniff", "no-store")

    def test_files_are_kept_for_good(self, api: Api) -> None:
        answer = api.ask("GET", "/assets/main-A1.js", token=None)
        assert (answer.status, answer.body) == (200, b"1")
        assert "immutable" in answer.headers["cache-control"]
        packed = api.ask("GET", "/assets/main-A1.js", token=None, headers={"Accept-Encoding": "gzip"})
        assert (packed.body, packed.headers["content-encoding"]) == (b"packed", "gzip")

    @pytest.mark.parametrize("name", ["..%2Fsecret.js", "%2e%2e%2fsecret.js", "main-B2.js", "main-A1.js.gz", "%00"])
    def test_others_are_not_there(self, api: Api, name: str) -> None:
        assert api.ask("GET", f"/assets/{name}", token=None).status in (400, 404)

    def test_without_a_build_it_says_so(self, api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        monkeypatch.setattr(pages, "STATIC", tmp_path / "none")
        pages._index.cache_clear()
        assert code_of(api.ask("GET", "/", token=None)) == (409, "failed_precondition")


def test_it_can_be_off() -> None:
    with serving(ApiSettings(dashboard=False)) as api:
        assert api.ask("GET", "/", token=None).status == 404


def test_nobody_signs_in_where_pages_of_sandboxes_share_the_origin() -> None:
    with serving(ApiSettings(confine_tunnels=False)) as api:
        assert code_of(Browser(api).sign_in(token=api.root)) == (409, "failed_precondition")
        browser = Browser(api)
        secret = api.run(api.fake.ask(verbs.session_secret))
        found = split(api.root)
        assert found is not None
        browser.cookie = f"{sessions.COOKIE}_{api.port}={sessions.sign(secret, found[0], int(time.time()) + 60)}"
        assert code_of(browser.ask("GET", "/v1/sandboxes")) == (401, "unauthenticated")
