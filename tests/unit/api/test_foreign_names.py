"""Pools, secrets, volumes and images of other environments: on every route, as those that never were."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from shoal.model.access import Scope
from tests.api import Api, serving
from tests.unit.api.test_foreign import DOCUMENT, request_for, told

KINDS = {"pools": "hidden", "secrets": "hidden", "volumes": "hidden", "images": "hidden:v1"}
"""And the name of the one in `dev`."""

ROUTES = [
    (method.upper(), path)
    for path, methods in DOCUMENT["paths"].items()
    for method in methods
    if re.match(rf"/v1/({'|'.join(KINDS)})/\{{(name|image)\}}", path)
]


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with serving() as served:
        bodies = {
            "/v1/pools": {"name": "hidden", "min_ready": 0, "spec": {"environment": "dev"}},
            "/v1/secrets": {"name": "hidden", "environment": "dev", "values": {"KEY": "value"}},
            "/v1/volumes": {"name": "hidden", "environment": "dev"},
        }
        for path, body in bodies.items():
            made = served.ask("POST", path, body)
            assert made.status == 201, made.body
        source = served.sandbox(environment="dev")["id"]
        snapshot = served.ask("POST", f"/v1/sandboxes/{source}/snapshot", {"name": "hidden:v1"})
        assert snapshot.status == 201, snapshot.body
        for kind, name in KINDS.items():
            assert served.ask("GET", f"/v1/{kind}/{name}?environment=dev").status == 200
        yield served


def test_there_are_such_routes() -> None:
    assert len(ROUTES) >= 18
    assert {path.split("/")[2] for _, path in ROUTES} == set(KINDS)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("scope", [Scope.RUN, Scope.READ, Scope.ADMIN])
@pytest.mark.parametrize(("method", "template"), ROUTES, ids=str)
def test_every_route(api: Api, method: str, template: str, scope: Scope, named: bool) -> None:
    token = api.token("main", scope)
    query, body, raw = request_for(method, template)
    tag = ":v1" if "{image}" in template else ""
    if named and body is not None:
        body = {**body, "environment": "dev"}
    elif named:
        query += "&environment=dev"
    answers = []
    for name in "hidden", "absent":
        path = template.format(name=name, image=name + tag, version="ver-x")
        answers.append(told(api.ask(method, path + query, body, raw=raw, token=token), name))
    assert answers[0] == answers[1]
    assert answers[0][0] in (400, 403, 404, 422), answers[0]
