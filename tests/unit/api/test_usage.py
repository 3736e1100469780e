"""Use of sandboxes over HTTP."""

from __future__ import annotations

import pytest

from shoal.cluster.api.usage import to_csv
from shoal.model import verbs
from shoal.model.access import Scope
from shoal.model.usage import UsageRow
from shoal.transport.http_verbs import result_of
from tests.api import Api


def test_the_accounts_in_both_forms(api: Api) -> None:
    got = api.ask("GET", "/v1/usage?by=day&since=0", token=api.token("main", Scope.READ))
    assert (got.status, result_of(verbs.usage, got.json)) == (200, [])
    csv = api.ask("GET", "/v1/usage?by=tag:job&format=csv")
    assert csv.headers["content-type"].startswith("text/csv")
    assert csv.body.startswith(b"key,sandboxes,seconds,cpu_seconds")


def test_one_sandbox_tells_what_it_uses(api: Api) -> None:
    made = api.sandbox()
    got = api.ask("GET", f"/v1/sandboxes/{made['id']}/usage?since=5")
    assert (got.status, got.json["sandbox_id"], got.json["interval"]) == (200, made["id"], 10.0)
    assert result_of(verbs.sandbox_usage, got.json).sandbox_id == made["id"]
    assert api.ask("GET", "/v1/sandboxes/sb-aaaaaaaaaaaaaaaa/usage").json["code"] == "sandbox_not_found"


def test_what_all_use_now(api: Api) -> None:
    made = api.sandbox()
    got = api.ask("GET", "/v1/usage/now?environment=main", token=api.token("main", Scope.READ))
    loads = {load.sandbox_id: load for load in result_of(verbs.loads, got.json)}
    assert loads[made["id"]].cpu == 0.5
    assert api.ask("GET", "/v1/usage/now?environment=none").json["code"] == "environment_not_found"


@pytest.mark.parametrize(
    ("query", "field"), [("by=week", "by"), ("since=-1", "since"), ("until=1e13", "until"), ("format=xml", "format")]
)
def test_what_is_wrong_is_named(api: Api, query: str, field: str) -> None:
    got = api.ask("GET", f"/v1/usage?{query}")
    assert (got.status, got.json["field"]) == (400, field)


def test_a_spreadsheet_takes_no_tag_for_a_formula() -> None:
    row = UsageRow('=1+2,"x"', 1, 0, 0, 0, 0, 0, 0)
    assert to_csv([row]).splitlines()[1] == '"\'=1+2,""x""",1,0,0,0,0,0,0'
