"""Images over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.model.access import Scope
from tests.api import Api


def sandbox(api: Api, **options: Any) -> str:
    return str(api.ask("POST", "/v1/sandboxes", options).json["id"])


def test_from_its_making_to_its_end(api: Api) -> None:
    source = sandbox(api)
    got = api.ask("POST", f"/v1/sandboxes/{source}/snapshot", {"name": "agent:v1", "ttl": 99.0, "key": "once"})
    made = got.json
    assert (got.status, made["kind"], made["name"], made["sandbox_id"]) == (201, "snapshot", "agent:v1", source)
    assert "key" not in made
    again = api.ask("POST", f"/v1/sandboxes/{source}/snapshot", {"name": "agent:v1", "ttl": 99.0, "key": "once"})
    assert again.json["id"] == made["id"]
    for path in (made["id"], "agent:v1"):
        assert api.ask("GET", f"/v1/images/{path}").json["id"] == made["id"]
    child = api.ask("POST", "/v1/sandboxes", {"image": "agent:v1"}).json
    assert child["image"] == "agent:v1"
    refused = api.ask("DELETE", f"/v1/images/{made['id']}")
    assert (refused.status, refused.json["state"], refused.json["in_use"]) == (409, "in_use", 1)
    assert api.ask("PUT", "/v1/images/agent:v1/name", {"name": "agent:v2"}).json["name"] == "agent:v2"
    assert api.ask("DELETE", "/v1/images/agent:v2?when_unused=true").json["in_use"] == 1
    assert api.ask("GET", f"/v1/images/{made['id']}").json["code"] == "image_not_found"
    assert api.ask("POST", "/v1/sandboxes", {"image": made["id"]}).json["code"] == "image_not_found"
    actions = [entry["action"] for entry in api.ask("GET", "/v1/audit").json["entries"]]
    assert {"image.snapshot", "image.name", "image.delete"} <= set(actions)


def test_a_directory_is_taken_and_mounted(api: Api) -> None:
    source, other = sandbox(api), sandbox(api)
    made = api.ask("POST", f"/v1/sandboxes/{source}/snapshot", {"path": "/srv/data", "name": "data:v1"}).json
    at = f"/v1/sandboxes/{other}/images"
    for _ in range(2):
        told = api.ask("POST", at, {"image": "data:v1", "path": "/mnt/data"})
        assert (told.status, told.json["mounted_images"]) == (200, {"/mnt/data": made["id"]})
    assert api.ask("GET", f"/v1/sandboxes/{other}").json["mounted_images"] == {"/mnt/data": made["id"]}
    refused = api.ask("POST", at, {"image": "shoal/base", "path": "/mnt/data/below"})
    assert (refused.status, refused.json["code"], refused.json["field"]) == (409, "already_exists", "path")
    for path in ("relative", "/proc/x"):
        assert api.ask("POST", at, {"image": "data:v1", "path": path}).json["field"] == "path"
    for _ in range(2):
        assert api.ask("DELETE", f"{at}?path=/mnt/data").json["mounted_images"] == {}
    actions = [entry["action"] for entry in api.ask("GET", "/v1/audit").json["entries"]]
    assert {"image.mount", "image.unmount"} <= set(actions)


def test_pages_and_what_nobody_uses(api: Api) -> None:
    source = sandbox(api)
    made = [api.ask("POST", f"/v1/sandboxes/{source}/snapshot", {}).json["id"] for _ in range(3)]
    first = api.ask("GET", "/v1/images?limit=2&kind=snapshot").json
    second = api.ask("GET", f"/v1/images?limit=2&cursor={first['next_cursor']}").json
    assert [each["id"] for each in (*first["images"], *second["images"])] == made[::-1]
    assert second["next_cursor"] is None
    assert api.ask("GET", "/v1/images?cursor=x").json["field"] == "cursor"
    gone = api.ask("POST", "/v1/images/collect", {"dry_run": True}).json["images"]
    assert {each["id"] for each in gone} == set(made)
    assert len(api.ask("POST", "/v1/images/collect", {}).json["images"]) == 3
    assert api.ask("GET", "/v1/images").json["images"] == []


def test_forks(api: Api) -> None:
    source = sandbox(api, name="web", tags={"a": "b"}, env={"HIDDEN": "1"})
    got = api.ask("POST", f"/v1/sandboxes/{source}/fork", {"count": 2, "key": "once"})
    assert (got.status, [each["name"] for each in got.json["sandboxes"]]) == (201, [None, None])
    assert [each["tags"] for each in got.json["sandboxes"]] == [{"a": "b"}] * 2
    again = api.ask("POST", f"/v1/sandboxes/{source}/fork", {"count": 2, "key": "once"})
    assert [each["id"] for each in again.json["sandboxes"]] == [each["id"] for each in got.json["sandboxes"]]
    assert api.ask("POST", f"/v1/sandboxes/{source}/fork", {}).status == 201


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("snapshot", {"name": "UP"}, "name"),
        ("snapshot", {"name": "a/b:c"}, "name"),
        ("snapshot", {"ttl": 0}, "ttl"),
        ("snapshot", {"path": "relative"}, "path"),
        ("snapshot", {"key": " x"}, "idempotency_key"),
        ("fork", {"count": 0}, "count"),
        ("fork", {"count": 1001}, "count"),
    ],
    ids=repr,
)
def test_what_is_wrong_is_named(api: Api, path: str, body: dict[str, Any], field: str) -> None:
    got = api.ask("POST", f"/v1/sandboxes/{sandbox(api)}/{path}", body)
    assert (got.status, got.json["field"]) == (400, field)


def test_each_sees_those_of_its_environment(api: Api) -> None:
    dev, reader = api.token("dev", Scope.RUN), api.token("dev", Scope.READ)
    source = sandbox(api)
    image = api.ask("POST", f"/v1/sandboxes/{source}/snapshot", {"name": "agent"}).json["id"]
    assert api.ask("GET", "/v1/images", token=reader).json["images"] == []
    for path in (image, "agent", "agent?environment=main"):
        assert api.ask("GET", f"/v1/images/{path}", token=dev).status == 404
    assert api.ask("DELETE", f"/v1/images/{image}", token=dev).json["code"] == "image_not_found"
    assert api.ask("POST", f"/v1/sandboxes/{source}/snapshot", {}, token=dev).status == 404
    assert api.ask("POST", "/v1/sandboxes", {"image": image}, token=dev).json["code"] == "image_not_found"
    assert api.ask("POST", "/v1/images/collect", {}, token=reader).status == 403
