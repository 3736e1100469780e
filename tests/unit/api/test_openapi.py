"""The OpenAPI document holds for every route."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from shoal.cluster.api.app import make_app
from shoal.cluster.api.schema.openapi import TAGS
from shoal.model.http import PROBLEM
from shoal.model.settings import Settings
from tests.api import Api
from tests.fakes.cluster import FakeTransport

OPEN = {"/v1/health", "/v1/ready"}


@functools.cache
def document() -> dict[str, Any]:
    fake = FakeTransport()
    return make_app(fake, Settings()).openapi()


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, op) for path, methods in document()["paths"].items() for method, op in methods.items()]


def test_each_operation_says_what_it_is() -> None:
    for path, method, operation in operations():
        where = f"{method} {path}"
        assert operation["operationId"].replace("_", "").isalnum(), where
        assert operation["summary"], where
        assert operation["tags"][0] in {tag["name"] for tag in TAGS}, where
        assert operation["description"], where


def test_each_operation_says_how_it_is_refused() -> None:
    for path, method, operation in operations():
        where, responses = f"{method} {path}", operation["responses"]
        assert "422" not in responses, where
        assert {"400", "500", "503"} <= responses.keys(), where
        if path not in OPEN:
            assert operation["security"] == [{"token": []}], where
            assert {"401", "403"} <= responses.keys(), where
        if "application/json" in operation.get("requestBody", {}).get("content", {}):
            assert {"408", "413", "415"} <= responses.keys(), where


def test_what_is_sent_is_closed() -> None:
    for path, method, operation in operations():
        schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        if schema is not None and "$ref" in schema:
            model = document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            assert model["additionalProperties"] is False, f"{method} {path}"


@pytest.mark.parametrize("method", ["get", "head"])
def test_of_files_it_tells_of_ranges(api: Api, method: str) -> None:
    operation = document()["paths"]["/v1/sandboxes/{sandbox_id}/files"][method]
    headers = {each["name"]: each for each in operation["parameters"] if each["in"] == "header"}
    assert headers.keys() == {"Range", "If-Range", "If-None-Match", "If-Modified-Since"}
    made = api.sandbox()
    path = f"/v1/sandboxes/{made['id']}/files?path=/tmp/x"
    assert api.ask("PUT", path, raw=b"content").status == 200
    # Each of its examples is answered with what it says.
    seen = {
        api.ask(method.upper(), path, headers={name: example["value"]}).status
        for name, header in headers.items()
        for example in header["examples"].values()
    }
    assert seen == {200, 206, 304, 416}
    assert {str(status) for status in seen} <= operation["responses"].keys()


def test_operation_ids_are_plain_and_each_ones_own() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(ids) == len(set(ids))
    assert "create_sandbox" in ids


def test_every_reference_leads_somewhere() -> None:
    data = document()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(ref := value.get("$ref"), str):
                at: Any = data
                for part in ref.removeprefix("#/").split("/"):
                    at = at[part]
            for child in value.values():
                walk(child)
        elif isinstance(value, list):
            for child in value:
                walk(child)

    walk(data)
    assert PROBLEM in data["components"]["responses"]["Problem400"]["content"]


def test_it_is_there_for_all(api: Api) -> None:
    got = api.ask("GET", "/openapi.json", token=None)
    assert got.json["info"]["title"] == "Shoal"
    assert b"swagger" in api.ask("GET", "/docs", token=None).body
