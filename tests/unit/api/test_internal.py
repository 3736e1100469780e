"""What the gateway asks a replica about tunnels."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.types import ASGIApp, Message

from shoal.cluster.api.app import make_app
from shoal.cluster.api.tunnels.internal import make_internal_app
from shoal.model import verbs
from shoal.model.access import Scope
from shoal.model.errors import Unavailable
from shoal.model.settings import Settings
from shoal.model.tunnels import CONNECT_KEY
from tests.fakes.cluster import FakeTransport
from tests.unit.builders import spec

pytestmark = pytest.mark.anyio


async def call(app: ASGIApp, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Status and JSON of a request to an application in this loop."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": []}
    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


class Asking:
    """A gateway's view of a replica, and the cluster behind it."""

    def __init__(self) -> None:
        self.cluster = FakeTransport()
        self.app = make_internal_app(make_app(self.cluster, Settings()))

    async def sandbox(self, **options: Any) -> str:
        return (await self.cluster.create(spec(**options), deadline=5)).id

    async def token(self, environment: str = "*", scope: Scope = Scope.RUN) -> str:
        return (await self.cluster.ask(verbs.create_token, "t", environment, scope, None))[1]

    async def ask(
        self, sandbox: str, port: int = 80, api_token: str | None = None, *, wake: bool = False
    ) -> dict[str, Any]:
        body = {"sandbox": sandbox, "port": port, "api_token": api_token, "wake": wake}
        status, told = await call(self.app, "POST", "/tunnel", body)
        assert status == 200, told
        return dict(told)


@pytest.fixture
async def asking() -> Asking:
    return Asking()


async def test_a_tunnel_that_is_open_leads_somewhere(asking: Asking) -> None:
    made = await asking.sandbox()
    await asking.cluster.expose(made, 80, protocol="http", public=True)
    told = await asking.ask(made)
    assert (told["open"], told["public"], told["admitted"], told["refusal"]) == (True, True, None, None)
    assert told["relay"]
    assert told["grant"]
    assert told["key"] == CONNECT_KEY
    private = await asking.ask(made, 81)
    assert (private["open"], private["grant"]) == (False, None)


async def test_what_is_wrong_with_the_sandbox(asking: Asking) -> None:
    made = await asking.sandbox()
    assert (await asking.ask(made))["refusal"]["status"] == 404
    assert (await asking.ask("sb-none"))["refusal"]["code"] == "sandbox_not_found"
    await asking.cluster.expose(made, 80, protocol="tcp", public=True)
    assert not (await asking.ask(made))["open"], "a tcp tunnel is none of the gateway's"
    await asking.cluster.terminate(made)
    assert (await asking.ask(made))["refusal"]["status"] == 410


async def test_a_stopped_sandbox_is_started_only_for_who_was_admitted_to_a_tunnel_of_its_own(asking: Asking) -> None:
    made, shy = await asking.sandbox(persistent=True), await asking.sandbox(persistent=True, autostart=False)
    for each in (made, shy):
        await asking.cluster.expose(each, 80, protocol="http", public=True)
        await asking.cluster.stop(each)
    told = await asking.ask(made)
    assert (told["open"], told["asleep"], told["grant"]) == (True, True, None)
    await asking.ask(made, 81, wake=True)
    assert (await asking.cluster.ask(verbs.get, made)).state == "stopped"
    told = await asking.ask(made, wake=True)
    assert (told["asleep"], bool(told["grant"])) == (False, True)
    told = await asking.ask(shy)
    assert (told["open"], told["asleep"], told["refusal"]["state"]) == (False, False, "stopped")


async def test_which_api_tokens_are_admitted(asking: Asking) -> None:
    made = await asking.sandbox()
    await asking.cluster.expose(made, 80, protocol="http", public=False)
    for token, status in (
        (await asking.token(), None),
        (await asking.token("main"), None),
        (await asking.token("dev"), 401),
        (await asking.token(scope=Scope.READ), 403),
        ("shoal_tk-00000000_nothing", 401),
    ):
        told = await asking.ask(made, api_token=token)
        assert told["open"]
        assert told["admitted"] is (status is None)
        assert (told["refusal"] or {"status": None})["status"] == status


async def test_of_a_foreign_sandbox_a_token_learns_nothing(asking: Asking) -> None:
    made = await asking.sandbox()
    await asking.cluster.expose(made, 80, protocol="http", public=False)
    for token in (await asking.token("dev"), await asking.token("dev", Scope.READ)):
        foreign = await asking.ask(made, api_token=token)
        never = await asking.ask("sb-aaaaaaaaaaaaaaaa", api_token=token)
        assert (foreign["admitted"], foreign["refusal"]) == (never["admitted"], never["refusal"])


async def test_a_replica_that_cannot_tell_says_so(asking: Asking) -> None:
    asking.cluster.fail_next("tunnels", Unavailable("the controller is away"))
    status, told = await call(asking.app, "POST", "/tunnel", {"sandbox": "sb-1", "port": 80, "api_token": None})
    assert (status, told["code"]) == (503, "unavailable")
    assert (await call(asking.app, "POST", "/tunnel", {"sandbox": "sb-1"}))[0] == 400


async def test_the_secret_of_connect_tokens(asking: Asking) -> None:
    secret = await asking.cluster.ask(verbs.tunnel_secret)
    assert await call(asking.app, "GET", "/tunnel-secret") == (200, {"secret": secret.hex()})
