"""Nodes over HTTP: listed, cordoned and drained by administrators of all environments."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.cli.machines import one_of
from shoal.model.access import Scope
from shoal.model.errors import InvalidRequest
from tests.api import Api
from tests.unit.builders import node_info

CALLS: list[tuple[str, str, Any]] = [
    ("PUT", "/v1/nodes/n1/cordon", {"why": "x"}),
    ("DELETE", "/v1/nodes/n1/cordon", None),
    ("POST", "/v1/nodes/n1/drain", {"timeout": 0}),
]


def test_one_that_is_not_there(api: Api) -> None:
    for method, path, body in CALLS:
        got = api.ask(method, path, body)
        assert (got.status, got.json["code"]) == (404, "node_not_found"), path


def test_only_administrators_of_all_environments_change_them(api: Api) -> None:
    for who in (api.token("*", Scope.RUN), api.token("main", Scope.ADMIN)):
        for method, path, body in CALLS:
            assert api.ask(method, path, body, token=who).status == 403, path


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("cordon", {}, "why"),
        ("cordon", {"why": "x" * 257}, "why"),
        ("drain", {"why": ""}, "why"),
        ("drain", {"timeout": 31}, "timeout"),
        ("drain", {"force": "yes"}, "force"),
    ],
)
def test_what_is_wrong_is_named(api: Api, path: str, body: dict[str, Any], field: str) -> None:
    got = api.ask("PUT" if path == "cordon" else "POST", f"/v1/nodes/n1/{path}", body)
    assert (got.status, got.json["field"]) == (400, field)


def test_the_command_line_finds_a_node_by_any_of_its_names() -> None:
    nodes = [node_info("ab" + "0" * 54, hostname="one"), node_info("ac" + "0" * 54, hostname="two", machine="m-2")]
    for name, found in (("one", 0), ("m-2", 1), ("ab", 0), ("ac" + "0" * 54, 1)):
        assert one_of(nodes, name) is nodes[found]
    assert one_of(nodes, "three") is None
    for name in ("", "a"):
        with pytest.raises(InvalidRequest) as raised:
            one_of(nodes, name)
        assert raised.value.field == "node"
