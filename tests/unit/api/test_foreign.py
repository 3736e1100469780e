"""Sandboxes of other environments: on every route that the document has, and on WebSockets and tunnels, they are as
those that never were.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from fastapi.routing import APIWebSocketRoute
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from shoal.cluster.api.app import make_app
from shoal.model.access import Scope
from shoal.model.settings import Settings
from tests.api import Answer, Api, serving
from tests.fakes.cluster import FakeTransport

VALUES = {"path": "/tmp", "follow": "false", "timeout": "0"}
PLACES = {"process_id": "p-known", "port": "8080"}
BODIES: dict[str, Any] = {"exec": {"argv": ["true"]}, "processes": {"argv": ["true"]}, "signal": {"signal": "TERM"}}
FIRST = '{"argv": ["true"]}'


def _app() -> Any:
    fake = FakeTransport()
    return make_app(fake, Settings())


APP = _app()
DOCUMENT: dict[str, Any] = APP.openapi()
ROUTES = [
    (method.upper(), path)
    for path, methods in DOCUMENT["paths"].items()
    for method in methods
    if "{sandbox_id}" in path
]
SOCKETS = [r.path for r in APP.routes if isinstance(r, APIWebSocketRoute) and "{sandbox_id}" in r.path]


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def foreign(api: Api) -> str:
    """A sandbox of `dev`, with a process, a file and a tunnel."""
    made = str(api.sandbox(environment="dev", name="secret", command=["sleep", "600"])["id"])
    at = f"/v1/sandboxes/{made}"
    assert api.ask("POST", f"{at}/processes", {"argv": ["sleep", "600"], "id": "p-known"}).status == 201
    assert api.ask("PUT", f"{at}/files?path=/tmp/x", raw=b"secret").status == 200
    api.run(api.fake.expose(made, 8080, protocol="http", public=False))
    return made


@pytest.fixture(scope="module")
def never(foreign: str) -> str:
    """An id of the same length that was never given to a sandbox."""
    return "sb-" + "a" * (len(foreign) - 3)


def url(template: str, sandbox_id: str) -> str:
    places = {**PLACES, "sandbox_id": sandbox_id}
    return re.sub(r"\{(\w+)\}", lambda match: places[match[1]], template)


def request_for(method: str, template: str) -> tuple[str, Any, bytes | None]:
    """A good request: its query, its JSON, its raw body."""
    operation = DOCUMENT["paths"][template][method.lower()]
    named = {p["name"] for p in operation.get("parameters", []) if p["in"] == "query"}
    query = urlencode({name: value for name, value in VALUES.items() if name in named})
    content = operation.get("requestBody", {}).get("content", {})
    if "application/json" in content:
        last = template.rpartition("/")[2]
        return f"?{query}", BODIES.get(last) or smallest(content["application/json"]["schema"]), None
    return f"?{query}", None, b"x" if content else None


def smallest(schema: dict[str, Any]) -> Any:
    """The least that fits a schema."""
    if "$ref" in schema:
        return smallest(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return smallest(schema["anyOf"][0])
    if "enum" in schema:
        return schema["enum"][0]
    kinds = {"integer": max(1, schema.get("minimum", 1)), "number": 1, "boolean": True, "array": [], "string": "/x"}
    if schema.get("type") in kinds:
        return kinds[schema["type"]]
    return {name: smallest(schema["properties"][name]) for name in schema.get("required", ())}


def told(answer: Answer, sandbox_id: str) -> tuple[int, dict[str, str], str]:
    """All of an answer but for what names this request or this sandbox."""
    request_id = answer.headers.pop("x-request-id")
    answer.headers.pop("date")
    text = answer.body.decode().replace(request_id, "REQUEST").replace(sandbox_id, "SANDBOX")
    return answer.status, answer.headers, text


def calls_since(api: Api, start: int, sandbox_id: str) -> list[tuple[str, str]]:
    """What was asked of the cluster: as much for the one as for the other, so that time does not tell them apart
    either.
    """
    noise = {"report", "stored_token", "token_ids"}
    return [(n, str(a).replace(sandbox_id, "SANDBOX")) for n, a in api.fake.calls[start:] if n not in noise]


def test_there_are_such_routes() -> None:
    assert len(ROUTES) >= 25
    assert len(SOCKETS) == 3


@pytest.mark.parametrize("scope", [Scope.RUN, Scope.READ, Scope.ADMIN])
@pytest.mark.parametrize(("method", "template"), ROUTES, ids=str)
def test_every_route(api: Api, foreign: str, never: str, method: str, template: str, scope: Scope) -> None:
    token = api.token("main", scope)
    query, body, raw = request_for(method, template)
    answers, calls = [], []
    for sandbox_id in foreign, never:
        start = len(api.fake.calls)
        answer = api.ask(method, url(template, sandbox_id) + query, body, raw=raw, token=token)
        answers.append(told(answer, sandbox_id))
        calls.append(calls_since(api, start, sandbox_id))
    assert answers[0] == answers[1]
    assert calls[0] == calls[1]
    assert answers[0][0] in ((404,) if scope != Scope.READ else (403, 404)), answers[0]
    # The request is a good one: it is the token that makes the difference.
    if scope == Scope.RUN and method in ("GET", "HEAD"):
        assert api.ask(method, url(template, foreign) + query, body, raw=raw).status != 404
    assert api.ask("GET", f"/v1/sandboxes/{foreign}").json["tags"] == {}


@pytest.mark.parametrize("path", SOCKETS)
def test_every_websocket(api: Api, foreign: str, never: str, path: str) -> None:
    token = api.token("main", Scope.RUN)
    seen, calls = [], []
    for sandbox_id in foreign, never:
        start = len(api.fake.calls)
        seen.append(heard(api, url(path, sandbox_id), token).replace(sandbox_id, "SANDBOX"))
        calls.append(calls_since(api, start, sandbox_id))
    assert seen[0] == seen[1]
    assert calls[0] == calls[1]
    assert "sandbox_not_found" in seen[0]


def heard(api: Api, path: str, token: str) -> str:
    """All that a WebSocket says, its ids taken out."""
    said = []
    protocols = [Subprotocol("shoal.v1"), Subprotocol(f"shoal.bearer.{token}")]
    try:
        with connect(f"ws://127.0.0.1:{api.port}{path}", subprotocols=protocols, proxy=None) as socket:
            if path.endswith("/attach"):
                socket.send(FIRST)
            try:
                while True:
                    said.append(str(socket.recv(timeout=10)))
            except ConnectionClosed as closed:
                said.append(str(closed.rcvd))
    except InvalidStatus as refused:
        said.append(f"{refused.response.status_code} {bytes(refused.response.body or b'')!r}")
    return re.sub(r'"request_id": ?"\w+"', '"request_id":"REQUEST"', " ".join(said))


def test_names_and_keys_and_tags(api: Api, foreign: str) -> None:
    """What is taken or known elsewhere is free and unknown here."""
    token = api.token("main", Scope.RUN)
    elsewhere = api.ask("POST", "/v1/sandboxes", {"environment": "dev"}, headers={"Idempotency-Key": "key"}).json
    here = api.ask("POST", "/v1/sandboxes", {"tags": {"a": "b"}}, headers={"Idempotency-Key": "key"}, token=token)
    assert (here.status, here.json["environment"]) == (201, "main")
    assert here.json["id"] != elsewhere["id"]
    api.ask("PUT", f"/v1/sandboxes/{elsewhere['id']}/tags", {"tags": {"a": "b"}})
    listed = api.ask("GET", "/v1/sandboxes?tag=a:b&include_ended=true", token=token).json["sandboxes"]
    assert [sandbox["id"] for sandbox in listed] == [here.json["id"]]
    named, unnamed = (api.ask("GET", f"/v1/sandboxes/by-name/{name}", token=token) for name in ("secret", "sicret"))
    assert named.status == unnamed.status == 404
    assert told(named, "secret") == told(unnamed, "sicret")
    assert api.ask("POST", "/v1/sandboxes", {"name": "secret"}, token=token).status == 201


def test_a_cursor_of_another_environment_tells_nothing(api: Api, foreign: str) -> None:
    for _ in range(2):
        api.sandbox(environment="dev")
    cursor = api.ask("GET", "/v1/sandboxes?environment=dev&limit=1").json["next_cursor"]
    assert cursor
    found = api.ask("GET", f"/v1/sandboxes?cursor={cursor}", token=api.token("main", Scope.READ))
    assert found.status == 200
    assert {sandbox["environment"] for sandbox in found.json["sandboxes"]} <= {"main"}
