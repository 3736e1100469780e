"""Tokens, environments, the audit log, what the cluster consists of."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.model.access import Scope
from tests.api import Api


class TestTokens:
    def test_one_is_told_once_and_works(self, api: Api) -> None:
        got = api.ask("POST", "/v1/tokens", {"name": "ci", "environment": "dev", "scope": "run", "expires_in": 3600})
        assert (got.status, got.headers["cache-control"]) == (201, "no-store")
        made = got.json
        assert (made["environment"], made["scope"], made["created_by"]) == ("dev", "run", api.root.split("_")[1])
        assert made["expires_at"] == pytest.approx(made["created_at"] + 3600)
        listed = api.ask("GET", "/v1/tokens")
        assert listed.json["tokens"][0] == {key: value for key, value in made.items() if key != "token"}
        assert made["token"].rpartition("_")[2].encode() not in listed.body
        assert api.ask("GET", "/v1/tokens/self", token=made["token"]).json == listed.json["tokens"][0]
        assert api.sandbox(token=made["token"])["environment"] == "dev"

    @pytest.mark.parametrize(("who", "expected"), [("*", "main"), ("dev", "dev")])
    def test_it_is_of_the_makers_environment(self, api: Api, who: str, expected: str) -> None:
        made = api.ask("POST", "/v1/tokens", {"name": "x"}, token=api.token(who)).json
        assert (made["environment"], made["scope"], made["expires_at"]) == (expected, "run", None)

    def test_of_all_environments_by_the_clusters_own(self, api: Api) -> None:
        made = api.ask("POST", "/v1/tokens", {"name": "x", "environment": "*", "scope": "admin"}).json
        assert api.ask("GET", "/v1/environments", token=made["token"]).status == 200

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "name"), ({"name": ""}, "name"), ({"name": "x", "scope": "root"}, "scope"), ({"name": "x",
            "scope": 1}, "scope"),
            ({"name": "x", "expires_in": 0}, "expires_in"), ({"name": "x", "expires_in": "1"}, "expires_in"),
            ({"name": "x", "environment": "**"}, "environment"), ({"name": "x", "token": "y"}, "token"),
        ],
        ids=repr,
    )  # fmt: skip
    def test_what_is_wrong_is_named(self, api: Api, body: dict[str, Any], field: str) -> None:
        got = api.ask("POST", "/v1/tokens", body)
        assert (got.status, got.json["field"]) == (400, field)

    @pytest.mark.parametrize("token_id", ["tk-aaaaaaaaaaaaaaaa", "x", "%00", "self"])
    def test_one_that_is_not_there(self, api: Api, token_id: str) -> None:
        got = api.ask("DELETE", f"/v1/tokens/{token_id}")
        assert (got.status, got.json["code"]) == (404, "token_not_found")

    def test_only_administrators_deal_with_them(self, api: Api) -> None:
        runner = api.token("main", Scope.RUN)
        for method, path, body in [
            ("POST", "/v1/tokens", {"name": "x"}), ("GET", "/v1/tokens", None), ("DELETE", "/v1/tokens/tk-a", None),
            ("GET", "/v1/audit", None), ("PUT", "/v1/environments/main/quota", {}),
        ]:  # fmt: skip
            assert api.ask(method, path, body, token=runner).status == 403, path
        assert api.ask("GET", "/v1/tokens/self", token=runner).json["scope"] == "run"


class TestEnvironments:
    def test_from_its_making_to_its_end(self, api: Api) -> None:
        quota = {"sandboxes": 3, "cpu": 2.5, "memory": 4096, "creates_per_minute": 10}
        quota |= {"volume_bytes": 1 << 40, "volume_files": 1000}
        got = api.ask("POST", "/v1/environments", {"name": "team-a", "quota": quota})
        assert (got.status, got.json["quota"]) == (201, quota)
        assert api.ask("POST", "/v1/environments", {"name": "team-a"}).status == 409
        made = api.sandbox(environment="team-a")
        seen = api.ask("GET", "/v1/environments/team-a").json
        assert (seen["usage"]["sandboxes"], seen["usage"]["cpu"]) == (1, made["cpu"][1])
        assert "team-a" in [e["name"] for e in api.ask("GET", "/v1/environments").json["environments"]]
        token = api.ask("POST", "/v1/tokens", {"name": "x", "environment": "team-a"}).json["token"]
        assert api.ask("DELETE", "/v1/environments/team-a").json["code"] == "failed_precondition"
        api.ask("DELETE", f"/v1/sandboxes/{made['id']}")
        gone = api.ask("DELETE", "/v1/environments/team-a")
        assert (gone.status, gone.body) == (204, b"")
        assert api.ask("GET", "/v1/environments/team-a").json["code"] == "environment_not_found"
        assert api.ask("GET", "/v1/defaults", token=token).status == 401

    def test_its_quota_is_replaced(self, api: Api) -> None:
        path = "/v1/environments/main/quota"
        assert api.ask("PUT", path, {"sandboxes": 5}).json["quota"]["sandboxes"] == 5
        # It is what the cluster's own administrators set an environment's.
        assert api.ask("PUT", path, {"sandboxes": None}, token=api.token("main")).json["code"] == "permission_denied"
        assert api.ask("GET", "/v1/environments/main").json["quota"]["sandboxes"] == 5
        empty = {"sandboxes": None, "cpu": None, "memory": None, "creates_per_minute": None}
        empty |= {"volume_bytes": None, "volume_files": None}
        assert api.ask("PUT", path, {}).json["quota"] == empty

    @pytest.mark.parametrize("quota", [{"sandboxes": -1}, {"sandboxes": 1.5}, {"cpu": "1"}, {"disk": 1}, {"cpu": -0.1}])
    def test_a_quota_that_is_none(self, api: Api, quota: dict[str, Any]) -> None:
        (name,) = quota
        got = api.ask("PUT", "/v1/environments/main/quota", quota)
        assert (got.status, got.json["field"]) == (400, name)
        got = api.ask("POST", "/v1/environments", {"name": "new", "quota": quota})
        assert (got.status, got.json["field"]) == (400, f"quota.{name}")

    def test_main_always_is(self, api: Api) -> None:
        assert api.ask("DELETE", "/v1/environments/main").status == 400


class TestAudit:
    def entries(self, api: Api, query: str = "") -> list[dict[str, Any]]:
        api.run(api.app.state.usage_reporter.flush())
        found: list[dict[str, Any]] = api.ask("GET", f"/v1/audit{query}").json["entries"]
        return [entry for entry in found if entry["action"].startswith("sandbox.")]

    def test_who_did_what_and_who_was_refused(self, api: Api) -> None:
        headers = {"X-Request-Id": "r-1"}
        made = api.ask("POST", "/v1/sandboxes", {"environment": "dev"}, headers=headers).json
        reader = api.token("dev", Scope.READ)
        api.ask("DELETE", f"/v1/sandboxes/{made['id']}", token=reader)
        api.ask("POST", "/v1/sandboxes", {"name": "-"})
        api.ask("GET", "/v1/sandboxes")
        api.ask("DELETE", f"/v1/sandboxes/{made['id']}", token=None)
        wrong, refused, created = self.entries(api)
        assert {key: created[key] for key in ("action", "outcome", "token", "environment", "target", "request_id")} == {
            "action": "sandbox.create", "outcome": "ok", "token": api.root.split("_")[1], "environment": "dev",
            "target": made["id"], "request_id": "r-1",
        }  # fmt: skip
        assert created["address"] == "127.0.0.1"
        assert (refused["action"], refused["outcome"], refused["target"], refused["token"]) == (
            "sandbox.terminate", "permission_denied", made["id"], reader.split("_")[1],
        )  # fmt: skip
        assert (wrong["action"], wrong["outcome"]) == ("sandbox.create", "invalid_request")

    def test_of_a_batch_each(self, api: Api) -> None:
        results = api.ask("POST", "/v1/sandboxes/batch", {"sandboxes": [{}, {"image": "a", "user": "\0"}]}).json[
            "results"
        ]
        entries = self.entries(api)
        assert [(e["action"], e["outcome"], e["target"]) for e in entries] == [
            ("sandbox.create", "invalid_request", None),
            ("sandbox.create", "ok", results[0]["sandbox"]["id"]),
        ]

    def test_page_by_page(self, api: Api) -> None:
        for _ in range(5):
            api.sandbox()
        ids = [entry["id"] for entry in self.entries(api, "?limit=3")]
        more = [entry["id"] for entry in self.entries(api, f"?limit=3&before={ids[-1]}")]
        assert [*ids, *more] == sorted({*ids, *more}, reverse=True)
        assert (len(ids), len(more)) == (3, 2)


def test_what_the_cluster_consists_of(api: Api) -> None:
    reader = api.token("main", Scope.READ)
    assert api.ask("GET", "/v1/defaults", token=reader).json["image"] == "shoal/base"
    (node,) = api.ask("GET", "/v1/nodes", token=api.token("*", Scope.READ)).json["nodes"]
    assert (node["id"], node["alive"]) == ("node-fake", True)
