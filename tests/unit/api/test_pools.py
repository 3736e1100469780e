"""Pools over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.model.access import Scope
from tests.api import Api


def test_from_its_making_to_its_end(api: Api) -> None:
    body = {"name": "python", "spec": {"image": "shoal/base", "timeout": 77}, "min_ready": 0, "max_ready": 4}
    got = api.ask("POST", "/v1/pools", body)
    made = got.json
    assert (got.status, made["environment"], made["spec"]["timeout"]) == (201, "main", 77)
    assert "env" not in made["spec"]
    assert api.ask("GET", "/v1/pools/python").json["use"]["ready"] == 0
    assert [pool["name"] for pool in api.ask("GET", "/v1/pools").json["pools"]] == ["python"]
    taken = api.ask("POST", "/v1/pools/python/take", {"env": {"A": "1"}, "tags": {"run": "7"}, "name": "web"})
    assert (taken.status, taken.json["timeout"], taken.json["tags"]) == (201, 77, {"run": "7"})
    sized = api.ask("PUT", "/v1/pools/python/size", {"min_ready": 0, "max_ready": 1}).json
    assert (sized["max_ready"], sized["use"]["in_use"]) == (1, 1)
    assert api.ask("DELETE", "/v1/pools/python").status == 204
    assert (api.ask("GET", "/v1/pools/python")).json["code"] == "pool_not_found"
    actions = [entry["action"] for entry in api.ask("GET", "/v1/audit").json["entries"]]
    assert {"pool.create", "pool.resize", "pool.delete", "sandbox.create"} <= set(actions)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": "x", "min_ready": 2, "max_ready": 1}, "min_ready"),
        ({"name": "x", "min_ready": -1}, "min_ready"),
        ({"name": "x", "max_ready": 1 << 40}, "max_ready"),
        ({"name": "x", "max_ready": 100_000}, "max_ready"),
        ({"name": "x", "spec": {"env": {"A": "1"}}}, "env"),
        ({"name": "x", "spec": {"image": 7}}, "spec.image"),
        ({"name": "x", "size": 7}, "size"),
    ],
    ids=repr,
)
def test_what_is_wrong_is_named(api: Api, body: dict[str, Any], field: str) -> None:
    got = api.ask("POST", "/v1/pools", body)
    assert (got.status, got.json["field"]) == (400, field)


def test_each_sees_those_of_its_environment(api: Api) -> None:
    dev, reader = api.token("dev", Scope.RUN), api.token("dev", Scope.READ)
    for token in (None, dev):
        api.ask("POST", "/v1/pools", {"name": "python", "min_ready": 0}, **({} if token is None else {"token": token}))
    assert [pool["environment"] for pool in api.ask("GET", "/v1/pools", token=reader).json["pools"]] == ["dev"]
    assert len(api.ask("GET", "/v1/pools").json["pools"]) == 2
    assert api.ask("GET", "/v1/pools/python?environment=main", token=dev).status == 404
    assert api.ask("POST", "/v1/pools/python/take", {}, token=reader).status == 403
    assert api.ask("DELETE", "/v1/pools/python", token=reader).status == 403
