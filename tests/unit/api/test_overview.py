"""The overview over HTTP."""

from __future__ import annotations

import pytest

from shoal.model import verbs
from shoal.model.access import Quota, Scope
from shoal.model.overview import Overview
from shoal.transport.http_verbs import result_of
from tests.api import Api


def test_it_is_the_same_to_a_client(api: Api) -> None:
    api.sandbox()
    got = api.ask("GET", "/v1/overview", token=api.token("*", Scope.READ))
    assert got.status == 200
    told = result_of(verbs.overview, got.json)
    assert isinstance(told, Overview)
    assert told.states["running"] == 1
    assert told.nodes is not None


def test_a_token_of_one_environment_sees_that(api: Api) -> None:
    api.run(api.fake.ask(verbs.create_environment, "glance", Quota()))
    api.sandbox()
    mine = api.token("glance", Scope.READ)
    got = api.ask("GET", "/v1/overview", token=mine)
    assert (got.json["environment"], got.json["states"]["running"]) == ("glance", 0)
    assert got.json["nodes"] is got.json["regions"] is got.json["exec"] is None
    assert api.ask("GET", "/v1/overview?environment=main", token=mine).json["code"] == "environment_not_found"
    assert api.ask("GET", "/v1/overview?environment=glance").json["nodes"] is not None


@pytest.mark.parametrize(
    ("query", "field"), [("since=-1", "since"), ("since=nan", "since"), ("environment=a%20b", "environment")]
)
def test_what_is_wrong_is_named(api: Api, query: str, field: str) -> None:
    got = api.ask("GET", f"/v1/overview?{query}")
    assert (got.status, got.json["field"]) == (400, field)
