"""Opening, listing and closing tunnels over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.model.access import Scope
from tests.api import Api


def test_a_tunnel_from_its_opening_to_its_end(api: Api) -> None:
    at = f"/v1/sandboxes/{api.sandbox()['id']}/tunnels"
    made = api.ask("POST", at, {"port": 8080})
    assert (made.status, made.headers["cache-control"]) == (201, "no-store")
    assert (made.json["port"], made.json["protocol"], made.json["public"]) == (8080, "http", False)
    assert made.json["token"]
    public = api.ask("POST", at, {"port": 22, "protocol": "tcp", "public": True}).json
    assert (public["token"], public["expires_at"], public["url"]) == (None, None, None)
    listed = api.ask("GET", at).json["tunnels"]
    assert [(tunnel["port"], tunnel["token"]) for tunnel in listed] == [(22, None), (8080, None)]
    later = api.ask("POST", f"{at}/8080/token", {"expires_in": 7200})
    assert (later.status, later.headers["cache-control"]) == (200, "no-store")
    assert later.json["expires_at"] == pytest.approx(made.json["expires_at"] + 3600, abs=30)
    for _ in range(2):
        assert api.ask("DELETE", f"{at}/22").status == 204
    assert [tunnel["port"] for tunnel in api.ask("GET", at).json["tunnels"]] == [8080]
    missing = api.ask("POST", f"{at}/22/token", {})
    assert (missing.status, missing.json["code"]) == (404, "tunnel_not_found")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "port"), ({"port": 0}, "port"), ({"port": 65536}, "port"), ({"port": "80"}, "port"), ({"port": 80.5},
        "port"),
        ({"port": 80, "protocol": "udp"}, "protocol"), ({"port": 80, "public": 1}, "public"), ({"port": 80,
        "token": "x"}, "token"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_wrong_is_named(api: Api, body: dict[str, Any], field: str) -> None:
    got = api.ask("POST", f"/v1/sandboxes/{api.sandbox()['id']}/tunnels", body)
    assert (got.status, got.json["field"]) == (400, field)


def test_who_may(api: Api) -> None:
    at = f"/v1/sandboxes/{api.sandbox()['id']}/tunnels"
    reader, foreign = api.token("main", Scope.READ), api.token("dev", Scope.RUN)
    assert api.ask("GET", at, token=reader).status == 200
    for method, path, body in (("POST", at, {"port": 1}), ("DELETE", f"{at}/1", None), ("POST", f"{at}/1/token", {})):
        assert api.ask(method, path, body, token=reader).status == 403
        refused = api.ask(method, path, body, token=foreign)
        assert (refused.status, refused.json["code"]) == (404, "sandbox_not_found")
