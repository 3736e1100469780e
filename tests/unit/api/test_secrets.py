"""Secrets over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.model.access import Scope
from tests.api import Api

CANARY = "canary-5d1f"


def test_from_its_storing_to_its_end(api: Api) -> None:
    body = {"name": "openai", "values": {"KEY": CANARY, "ORG": "x"}}
    answers = [api.ask("POST", "/v1/secrets", body)]
    assert (answers[0].status, answers[0].json["keys"], answers[0].json["version"]) == (201, ["KEY", "ORG"], 1)
    assert api.ask("POST", "/v1/secrets", body).json["code"] == "already_exists"
    answers.append(api.ask("POST", "/v1/secrets", {**body, "replace": True}))
    answers += [api.ask("GET", path) for path in ("/v1/secrets", "/v1/secrets/openai")]
    answers.append(api.ask("POST", "/v1/secrets/rotate"))
    inline = {"values": {"TOKEN": CANARY}, "directory": "/run/secrets"}
    answers.append(api.ask("POST", "/v1/sandboxes", {"secrets": [{"name": "openai", "keys": ["KEY"]}, inline]}))
    assert answers[-1].json["secrets"] == [
        {"name": "openai", "keys": ["KEY"]},
        {"keys": ["TOKEN"], "directory": "/run/secrets"},
    ]
    answers.append(api.ask("POST", "/v1/pools", {"name": "p", "spec": {"secrets": [{"name": "openai"}]}}))
    answers.append(api.ask("POST", "/v1/pools/p/take", {"secrets": [inline]}))
    assert [answer.status for answer in answers] == [201, 201, 200, 200, 200, 201, 201, 201]
    assert api.ask("DELETE", "/v1/secrets/openai").status == 204
    assert api.ask("GET", "/v1/secrets/openai").json["code"] == "secret_not_found"
    answers.append(api.ask("GET", "/v1/audit"))
    assert CANARY.encode() not in b"".join(answer.body for answer in answers)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/secrets", {"name": "x", "values": {"A": [CANARY]}}, "values"),
        ("/v1/secrets", {"name": "x", "values": CANARY}, "values"),
        ("/v1/secrets", {"name": "x", "values": {"A ": CANARY}}, "values"),
        ("/v1/secrets", {"name": "x"}, "values"),
        ("/v1/sandboxes", {"secrets": [{"values": {"A": {"b": CANARY}}}]}, "secrets.0"),
        ("/v1/sandboxes", {"secrets": [{"values": {"A": CANARY}, "sealed": "1.k.x"}]}, "secrets.0"),
        ("/v1/sandboxes", {"volumes": [{"path": "/x", "secret": {"values": CANARY}}]}, "volumes"),
        ("/v1/images/pull", {"reference": "a/b:1", "secret": {"values": CANARY}}, "secret"),
    ],
)
def test_what_is_wrong_is_named_and_not_shown(api: Api, path: str, body: dict[str, Any], field: str) -> None:
    got = api.ask("POST", path, body)
    assert (got.status, got.json["field"]) == (400, field)
    assert CANARY.encode() not in got.body
    if path == "/v1/sandboxes":
        (result,) = api.ask("POST", "/v1/sandboxes/batch", {"sandboxes": [body]}).json["results"]
        assert (result["error"]["field"], CANARY in str(result)) == (field, False)


def test_who_may_do_what(api: Api) -> None:
    body = {"name": "db", "values": {"URL": "x"}}
    for scope, allowed in ((Scope.READ, False), (Scope.RUN, False), (Scope.ADMIN, True)):
        got = api.ask("POST", "/v1/secrets", {**body, "replace": True}, token=api.token("main", scope))
        assert got.status == (201 if allowed else 403)
    assert api.ask("GET", "/v1/secrets", token=api.token("main", Scope.READ)).status == 200
    assert api.ask("DELETE", "/v1/secrets/db", token=api.token("main", Scope.RUN)).status == 403
    assert api.ask("POST", "/v1/secrets/rotate", token=api.token("main", Scope.ADMIN)).status == 403
