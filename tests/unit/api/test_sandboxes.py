"""Sandboxes over HTTP."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import replace
from typing import Any

import pytest

from shoal.model import verbs
from shoal.model.access import Caller, Scope, caller
from shoal.model.errors import FailedPrecondition, QuotaExceeded, Unavailable
from shoal.model.info import Page, SandboxInfo
from shoal.model.sandbox_json import info_from_json
from shoal.model.settings import ApiSettings
from shoal.model.spec import SandboxSpec
from shoal.model.verbs import Verb
from shoal.transport.ray import RayTransport
from tests.api import Answer, Api
from tests.fakes.cluster import FakeTransport


def made(api: Api) -> list[SandboxSpec]:
    specs: list[SandboxSpec] = api.fake.named("create")
    return specs


@pytest.mark.anyio
@pytest.mark.parametrize(("scope", "woken"), [(Scope.READ, []), (Scope.RUN, ["sb-a"])])
async def test_who_may_only_look_wakes_nothing(scope: Scope, woken: list[str]) -> None:
    fake = FakeTransport()
    suspended = FailedPrecondition("it is suspended", state="stopped", suspended=True, autostart=True)
    fake.fail_next("grant", suspended)
    fake.fail_next("wake", Unavailable("it wakes"))
    before = caller.set(Caller("tk-a", "main", scope))
    with pytest.raises(Unavailable if woken else FailedPrecondition):
        await RayTransport.agent(fake, "sb-a")
    caller.reset(before)
    assert fake.named("wake") == woken


def lost() -> Unavailable:
    return Unavailable("the controller does not answer", sent=True)


class TestCreate:
    def test_all_of_it_comes_from_the_clusters_defaults(self, api: Api) -> None:
        answer = api.ask("POST", "/v1/sandboxes", {})
        assert answer.status == 201
        assert answer.headers["content-type"] == "application/json"
        info = info_from_json(answer.json)
        assert isinstance(info, SandboxInfo)
        assert (info.state, info.spec.image, info.spec.resources.memory_limit) == ("running", "shoal/base", 1024)
        assert info.spec.environment == "main"

    def test_all_of_it_may_be_said(self, api: Api) -> None:
        body = {
            "image": "python:3.12", "command": ["sleep", "60"], "name": "web", "tags": {"run": "42"}, "env": {"A": "1"},
            "workdir": "/work", "user": "1000", "cpu": [0.5, 2], "memory": [64, 256], "disk": 100, "gpu": 1, "pids": 20,
            "timeout": 60, "idle_timeout": 5.5, "pty": True, "network": "none", "runtime": "runsc",
            "environment": "dev", "region": ["eu", "us"], "zone": "eu-a", "placement": "spread",
            "wait_for_capacity": False,
        }  # fmt: skip
        answer = api.ask("POST", "/v1/sandboxes", body)
        assert answer.status == 201
        assert "env" not in answer.json
        assert {name: answer.json[name] for name in body if name != "env"} == {
            name: value for name, value in body.items() if name != "env"
        }
        assert made(api)[0].env == {"A": "1"}

    @pytest.mark.parametrize(
        ("given", "kept"), [({"cpu": 4}, [4, 4]), ({"cpu": 0.5}, [0.5, 1.0]), ({"memory": 2048}, [2048, 2048])]
    )
    def test_one_number_is_the_request(self, api: Api, given: dict[str, Any], kept: list[float]) -> None:
        (name,) = given
        assert api.sandbox(**given)[name] == kept

    def test_the_same_key_gives_the_same_sandbox(self, api: Api) -> None:
        headers = {"Idempotency-Key": "run 42/ü".encode("ascii", "replace").decode()}
        ids = {api.ask("POST", "/v1/sandboxes", {}, headers=headers).json["id"] for _ in range(3)}
        assert len(ids) == 1
        assert api.ask("POST", "/v1/sandboxes", {}).json["id"] not in ids

    @pytest.mark.parametrize("key", ["", "x" * 129, "tab\there"])
    def test_a_key_that_is_none_is_refused(self, api: Api, key: str) -> None:
        answer = api.ask("POST", "/v1/sandboxes", {}, headers={"Idempotency-Key": key})
        assert (answer.status, answer.json["field"]) == (400, "Idempotency-Key")

    def test_where_the_answer_is_lost_the_key_is_told(self, api: Api) -> None:
        api.fake.fail_next("create", lost())
        problem = api.ask("POST", "/v1/sandboxes", {})
        assert (problem.status, problem.json["retryable"]) == (503, False)
        assert "retry-after" not in problem.headers
        key = problem.json["idempotency_key"]
        assert f"Idempotency-Key: {key}" in problem.json["detail"]
        assert api.ask("POST", "/v1/sandboxes", {}, headers={"Idempotency-Key": key}).status == 201
        assert [spec.idempotency_key for spec in made(api)] == [key, key]

    def test_with_a_key_the_same_may_be_asked_for_again(self, api: Api) -> None:
        for error in (lost(), Unavailable("starting")):
            api.fake.fail_next("create", error)
            problem = api.ask("POST", "/v1/sandboxes", {}, headers={"Idempotency-Key": "mine"})
            assert problem.json["retryable"]
            assert "idempotency_key" not in problem.json
        api.fake.fail_next("create", Unavailable("starting"))
        assert api.ask("POST", "/v1/sandboxes", {}).json["retryable"]  # nothing was made

    def test_a_persistent_one_is_stopped_and_started(self, api: Api) -> None:
        made = api.sandbox(persistent=True)
        path = f"/v1/sandboxes/{made['id']}"
        stopped = api.ask("POST", f"{path}/stop")
        assert (stopped.status, stopped.json["state"], stopped.json["reason"]) == (200, "stopped", "stopped")
        assert stopped.json["stopped_at"] is not None
        refused = api.ask("POST", f"{path}/exec", {"argv": ["true"]})
        assert (refused.status, refused.json["state"]) == (409, "stopped")
        logs = api.ask("GET", f"{path}/logs", token=api.token("main", Scope.READ))
        assert (logs.status, logs.body) == (200, b""), "what its node has kept"
        api.fake.fail_next("agent", FailedPrecondition("resume it", state="stopped", suspended=True))
        logs = api.ask("GET", f"{path}/logs", token=api.token("main", Scope.READ))
        assert (logs.status, logs.json["state"]) == (409, "stopped"), "its output is in its memory"
        for body in ({}, {"deadline": 5.0}):
            started = api.ask("POST", f"{path}/start", body)
            assert (started.status, started.json["state"], started.json["reason"]) == (200, "running", None)
        assert api.ask("POST", f"{path}/start", {"deadline": 0}).json["field"] == "deadline"
        assert api.ask("POST", f"/v1/sandboxes/{api.sandbox()['id']}/stop").status == 409

    def test_without_waiting_it_is_accepted(self, api: Api) -> None:
        api.fake.start_s = 60
        answer = api.ask("POST", "/v1/sandboxes?wait=false", {})
        assert (answer.status, answer.json["state"]) == (202, "pending")

    def test_what_does_not_run_by_its_deadline_is_ended(self, api: Api) -> None:
        api.fake.start_s = 60
        answer = api.ask("POST", "/v1/sandboxes?deadline=0.05", {})
        assert (answer.status, answer.json["code"]) == (408, "deadline_exceeded")

    def test_it_goes_on_where_the_client_leaves(self, api: Api) -> None:
        api.fake.start_s = 0.2
        connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=10)
        headers = {
            "Authorization": f"Bearer {api.root}", "Content-Type": "application/json", "Idempotency-Key": "k",
        }  # fmt: skip
        connection.request("POST", "/v1/sandboxes", b"{}", headers)
        until(lambda: bool(made(api)))
        connection.close()
        again = api.ask("POST", "/v1/sandboxes", {}, headers={"Idempotency-Key": "k"})
        assert (again.status, again.json["state"]) == (201, "running")
        assert len(api.ask("GET", "/v1/sandboxes").json["sandboxes"]) == 1

    def test_a_name_is_taken_once(self, api: Api) -> None:
        api.sandbox(name="web")
        answer = api.ask("POST", "/v1/sandboxes", {"name": "web"})
        assert (answer.status, answer.json["code"], answer.json["field"]) == (409, "already_exists", "name")

    def test_a_quota_says_when_to_come_back(self, api: Api) -> None:
        api.fake.fail_next("create", QuotaExceeded("creates_per_minute: 10 are reached", retry_after=7.2))
        answer = api.ask("POST", "/v1/sandboxes", {})
        assert (answer.status, answer.headers["retry-after"], answer.json["retry_after"]) == (429, "8", 7.2)

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"nmae": "x"}, "nmae"),
            ({"name": "-"}, "name"),
            ({"cpu": "1"}, "cpu"),
            ({"cpu": [1]}, "cpu.1"),
            ({"cpu": 0}, "cpu"),
            ({"cpu": [2, 1]}, "cpu"),
            ({"memory": 1.5}, "memory"),
            ({"memory": 10**30}, "memory"),
            ({"tags": {"a": 1}}, "tags.a"),
            ({"tags": {str(i): "" for i in range(65)}}, "tags"),
            ({"command": "true"}, "command"),
            ({"command": ["sleep", 1]}, "command.1"),
            ({"command": ["a\0b"]}, "command"),
            ({"env": {"A=B": "x"}}, "env"),
            ({"timeout": True}, "timeout"),
            ({"timeout": 10**400}, "timeout"),
            ({"network": "host"}, "network"),
            ({"idempotency_key": "k"}, "idempotency_key"),
            ({"workdir": "here"}, "workdir"),
            ([], "body"),
        ],
        ids=repr,
    )
    def test_what_is_wrong_is_named(self, api: Api, body: object, field: str) -> None:
        answer = api.ask("POST", "/v1/sandboxes", body)
        assert (answer.status, answer.json["code"], answer.json["field"]) == (400, "invalid_request", field)
        assert answer.headers["content-type"] == "application/problem+json"


class TestBatch:
    def test_each_has_an_outcome_of_its_own(self, api: Api) -> None:
        items = [{"name": "a"}, {"name": "a"}, {"cpu": [2, 1]}, {"environment": "nowhere"}, {"command": ["true"]}]
        answer = api.ask("POST", "/v1/sandboxes/batch", {"sandboxes": items})
        assert answer.status == 200
        results = answer.json["results"]
        assert [result.get("error", {}).get("code") for result in results] == [
            None, "already_exists", "invalid_request", "environment_not_found", None,
        ]  # fmt: skip
        assert results[0]["sandbox"]["name"] == "a"

    def test_where_all_are_bad_each_is_told_why(self, api: Api) -> None:
        items = [{"cpu": "much"}, {"nonsense": 1}, 5, None, {"timeout": -1}, {"image": ""}, {"env": 7}]
        answer = api.ask("POST", "/v1/sandboxes/batch", {"sandboxes": items})
        assert answer.status == 200
        errors = [result["error"] for result in answer.json["results"]]
        assert {error["status"] for error in errors} == {400}
        fields = ["cpu", "nonsense", "body", "body", "timeout", "image", "env"]
        assert [error["field"] for error in errors] == fields
        assert api.fake.named("create_many") == []

    def test_its_key_gives_each_a_key(self, api: Api) -> None:
        body = {"sandboxes": [{}, {"idempotency_key": "own"}, {}]}
        first, second = (
            api.ask("POST", "/v1/sandboxes/batch", body, headers={"Idempotency-Key": "b"}).json for _ in range(2)
        )
        assert [r["sandbox"]["id"] for r in first["results"]] == [r["sandbox"]["id"] for r in second["results"]]
        assert [spec.idempotency_key for spec in api.fake.named("create_many")[0]] == ["b:0", "own", "b:2"]

    def test_where_the_answer_is_lost_the_key_is_told(self, api: Api) -> None:
        body: dict[str, Any] = {"sandboxes": [{}, {"idempotency_key": "own"}]}
        api.fake.fail_next("create_many", lost())
        problem = api.ask("POST", "/v1/sandboxes/batch", body)
        assert (problem.status, problem.json["retryable"]) == (503, False)
        key = problem.json["idempotency_key"]
        again = api.ask("POST", "/v1/sandboxes/batch", body, headers={"Idempotency-Key": key})
        assert again.status == 200
        first, second = [[spec.idempotency_key for spec in specs] for specs in api.fake.named("create_many")]
        assert first == second == [f"{key}:0", "own"]

    @pytest.mark.parametrize("key", ["", "x" * 129, "clé", " x", "x ", "x\n"])
    def test_a_key_that_is_none_is_refused(self, api: Api, key: str) -> None:
        answer = api.ask("POST", "/v1/sandboxes/batch", {"sandboxes": [{}, {"idempotency_key": key}]})
        good, wrong = answer.json["results"]
        assert (answer.status, good["sandbox"]["state"]) == (200, "running")
        assert (wrong["error"]["status"], wrong["error"]["field"]) == (400, "idempotency_key")

    def test_where_each_has_a_key_the_same_may_be_asked_for_again(self, api: Api) -> None:
        api.fake.fail_next("create_many", lost())
        problem = api.ask("POST", "/v1/sandboxes/batch", {"sandboxes": [{"idempotency_key": "own"}]})
        assert problem.json["retryable"]
        assert "idempotency_key" not in problem.json

    def test_a_batch_may_have_a_body_beyond_the_usual_size(self, api: Api) -> None:
        padding = {f"padding {i}": "x" * 250 for i in range(20)}
        items: list[Any] = [{"tags": {**padding, "i": str(i)}} for i in range(250)]
        items[0]["env"] = {"PAD": "z" * 140_000}
        assert len(json.dumps(items)) > ApiSettings().max_body
        answer = api.ask("POST", "/v1/sandboxes/batch", {"sandboxes": items})
        assert answer.status == 200
        results = answer.json["results"]
        assert [r["sandbox"]["tags"]["i"] for r in results[1:]] == [str(i) for i in range(1, 250)]
        assert results[0]["error"]["field"] == "env"

    @pytest.mark.parametrize("items", [[], [{}] * 1001])
    def test_none_and_too_many_are_refused(self, api: Api, items: list[Any]) -> None:
        answer = api.ask("POST", "/v1/sandboxes/batch", {"sandboxes": items})
        assert (answer.status, answer.json["field"]) == (400, "sandboxes")

    def test_without_waiting_none_runs_yet(self, api: Api) -> None:
        api.fake.start_s = 60
        answer = api.ask("POST", "/v1/sandboxes/batch", {"sandboxes": [{}, {}], "wait": False})
        assert [result["sandbox"]["state"] for result in answer.json["results"]] == ["pending", "pending"]


class TestList:
    def test_page_by_page_each_comes_once_newest_first(self, api: Api) -> None:
        ids = [api.sandbox()["id"] for _ in range(7)]
        pages: list[Answer] = []
        cursor = ""
        while cursor is not None:
            pages.append(api.ask("GET", f"/v1/sandboxes?limit=3{cursor and f'&cursor={cursor}'}"))
            cursor = pages[-1].json["next_cursor"]
        assert [len(page.json["sandboxes"]) for page in pages] == [3, 3, 1]
        assert [s["id"] for page in pages for s in page.json["sandboxes"]] == ids[::-1]

    def test_a_page_that_ends_early_is_followed_by_the_next(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        ids = [api.sandbox(tags={"n": str(n)})["id"] for n in range(7)]

        whole = api.fake.ask

        async def ask(verb: Verb[..., Any], *args: Any, **options: Any) -> Any:
            """Looks at two sandboxes, no more."""
            if verb is not verbs.list_sandboxes:
                return await whole(verb, *args, **options)
            (listing,) = args
            seen = (await whole(verb, replace(listing, tags={}, limit=2))).sandboxes
            shown = [info for info in seen if dict(listing.tags).items() <= dict(info.tags).items()]
            return Page(shown, (seen[-1].created_at, seen[-1].id) if len(seen) == 2 else None)

        monkeypatch.setattr(api.fake, "ask", ask)
        pages: list[Answer] = []
        cursor = ""
        while cursor is not None:
            pages.append(api.ask("GET", f"/v1/sandboxes?tag=n:3{cursor and f'&cursor={cursor}'}"))
            cursor = pages[-1].json["next_cursor"]
        assert [[s["id"] for s in page.json["sandboxes"]] for page in pages] == [[], [ids[3]], [], []]

    def test_filters_are_all_heeded(self, api: Api) -> None:
        one = api.sandbox(tags={"run": "1", "who": "a:b"}, region="eu")["id"]
        two = api.sandbox(tags={"run": "1"}, region="us")["id"]
        other = api.sandbox(environment="dev")["id"]
        api.ask("DELETE", f"/v1/sandboxes/{two}")

        def listed(query: str) -> list[str]:
            return [sandbox["id"] for sandbox in api.ask("GET", f"/v1/sandboxes?{query}").json["sandboxes"]]

        assert listed("") == [one]
        assert listed("tag=run:1&include_ended=true") == [two, one]
        assert listed("tag=run:1&tag=who:a:b&tag=run:1&include_ended=true") == [one]
        assert listed("state=terminated") == [two]
        assert listed("state=terminated&state=running") == [two, one]
        assert listed("region=us&include_ended=true") == [two]
        assert listed("environment=dev") == [other]

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("limit=0", "limit"), ("limit=1001", "limit"), ("limit=x", "limit"), ("tag=run", "tag"), ("state=dead",
            "state"),
            ("tag=run:1&tag=run:2", "tag"),
            ("cursor=abc", "cursor"), ("cursor=%s" % ("a" * 129), "cursor"), ("sort=id", "sort"), ("region=", "region"),
            ("region=%00", "region"), ("region=%ff", "region"), ("environment=-", "environment"),
            ("cursor=WzEuMCwiYSJd", "cursor"), ("cursor=W05hTiwic2ItMSJd", "cursor"), ("cursor=W1tbW1s", "cursor"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_named(self, api: Api, query: str, field: str) -> None:
        answer = api.ask("GET", f"/v1/sandboxes?{query}")
        assert (answer.status, answer.json["code"]) == (400, "invalid_request")
        assert answer.json["field"].split(".")[0] == field

    def test_an_environment_that_is_not_there(self, api: Api) -> None:
        answer = api.ask("GET", "/v1/sandboxes?environment=nowhere")
        assert (answer.status, answer.json["code"]) == (404, "environment_not_found")


class TestOne:
    def test_it_is_found_by_id_and_by_name(self, api: Api) -> None:
        made = api.sandbox(name="wait")
        assert api.ask("GET", f"/v1/sandboxes/{made['id']}").json == made
        assert api.ask("GET", "/v1/sandboxes/by-name/wait").json == made

    @pytest.mark.parametrize("name", ["sb-aaaa", "no-id", "sb-UPPER", "%00", "x" * 300])
    def test_what_never_was_is_not_found(self, api: Api, name: str) -> None:
        for path in ("", "/wait", "/events?follow=false"):
            answer = api.ask("GET", f"/v1/sandboxes/{name}{path}")
            assert answer.status == 404, path
            assert answer.json["code"] == "sandbox_not_found"

    def test_its_tags_are_replaced(self, api: Api) -> None:
        made = api.sandbox(tags={"a": "1"})
        answer = api.ask("PUT", f"/v1/sandboxes/{made['id']}/tags", {"tags": {"b": "2"}})
        assert (answer.status, answer.json["tags"]) == (200, {"b": "2"})

    def test_its_end_is_told_again_and_again(self, api: Api) -> None:
        made = api.sandbox(command=["sleep", "60"])
        first, second = (api.ask("DELETE", f"/v1/sandboxes/{made['id']}") for _ in range(2))
        assert first.status == second.status == 200
        assert first.json == second.json
        assert (first.json["state"], first.json["reason"], first.json["returncode"]) == ("terminated", "terminated", -9)

    def test_one_without_a_command_has_a_number_once_it_has_ended(self, api: Api) -> None:
        at = f"/v1/sandboxes/{api.sandbox()['id']}"
        assert api.ask("GET", at).json["returncode"] is None
        ended = api.ask("DELETE", at)
        for answer in (ended, api.ask("GET", at), api.ask("GET", f"{at}/wait?timeout=1")):
            assert (answer.json["reason"], answer.json["returncode"]) == ("terminated", 137)

    def test_its_end_is_awaited(self, api: Api) -> None:
        made = api.sandbox(command=["sleep", "0.2"])
        answer = api.ask("GET", f"/v1/sandboxes/{made['id']}/wait?timeout=10")
        assert (answer.json["state"], answer.json["reason"]) == ("terminated", "completed")
        living = api.sandbox()
        assert api.ask("GET", f"/v1/sandboxes/{living['id']}/wait?timeout=0").json["state"] == "running"

    @pytest.mark.parametrize("timeout", ["-1", "61", "nan", "inf", "x"])
    def test_a_timeout_has_its_bounds(self, api: Api, timeout: str) -> None:
        made = api.sandbox()
        answer = api.ask("GET", f"/v1/sandboxes/{made['id']}/wait?timeout={timeout}")
        assert (answer.status, answer.json["field"]) == (400, "timeout")

    def test_what_is_away_may_be_asked_again(self, api: Api) -> None:
        made = api.sandbox()
        api.fake.fail_next("get", Unavailable("the controller restarts"))
        answer = api.ask("GET", f"/v1/sandboxes/{made['id']}")
        assert (answer.status, answer.json["retryable"], answer.headers["retry-after"]) == (503, True, "1")


def test_what_a_token_may_is_held_to(api: Api) -> None:
    reader = api.token("main", Scope.READ)
    made = api.sandbox()
    for method, path, body in [
        ("POST", "/v1/sandboxes", {}),
        ("POST", "/v1/sandboxes/batch", {"sandboxes": [{}]}),
        ("DELETE", f"/v1/sandboxes/{made['id']}", None),
        ("PUT", f"/v1/sandboxes/{made['id']}/tags", {"tags": {}}),
    ]:
        answer = api.ask(method, path, body, token=reader)
        assert (answer.status, answer.json["code"]) == (403, "permission_denied"), path
    assert api.ask("GET", f"/v1/sandboxes/{made['id']}", token=reader).status == 200
    assert json.loads(api.ask("GET", f"/v1/sandboxes/{made['id']}").body)["state"] == "running"


def until(condition: Any, within_s: float = 10) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_api_sorts_over_its_pages(api: Api) -> None:
    for name in ("b", "d", "a", "c"):
        api.sandbox(name=name)
    path, names = "/v1/sandboxes?sort=-name&limit=3", []
    while path:
        page = api.ask("GET", path).json
        names += [each["name"] for each in page["sandboxes"]]
        cursor = page["next_cursor"]
        path = cursor and f"/v1/sandboxes?sort=-name&limit=3&cursor={cursor}"
    assert names == ["d", "c", "b", "a"]
    refused = api.ask("GET", "/v1/sandboxes?sort=size")
    assert (refused.status, refused.json["field"]) == (400, "sort")
