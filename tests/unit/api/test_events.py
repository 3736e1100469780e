"""Events, streamed and not."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest

from shoal.cluster.api.processes import websockets
from shoal.cluster.api.sandboxes import events
from shoal.model.access import Scope
from tests.api import Api
from tests.processes import eventually


class Stream:
    """A stream of server-sent events."""

    def __init__(self, api: Api, path: str, headers: dict[str, str] | None = None, *, token: str | None = None) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=10)
        bearer = {"Authorization": f"Bearer {token or api.root}"}
        self.connection.request("GET", path, headers={**bearer, **(headers or {})})
        self.response = self.connection.getresponse()
        assert self.response.status == 200
        assert self.response.headers["content-type"].startswith("text/event-stream")

    def block(self) -> list[str]:
        """The next block's lines; none at the end."""
        lines = []
        while line := self.response.readline().decode().rstrip("\n"):
            lines.append(line)
        return lines

    def event(self) -> tuple[int, str, dict[str, Any]] | None:
        """The next event; None at the end."""
        while lines := self.block():
            if not lines[0].startswith(":"):
                fields = dict(line.split(": ", 1) for line in lines)
                return int(fields["id"]), fields["event"], json.loads(fields["data"])
        return None

    def close(self) -> None:
        self.response.close()
        self.connection.close()


def test_a_sandboxs_stream_has_its_life_and_ends_with_it(api: Api) -> None:
    made = api.sandbox(tags={"a": "1"})
    stream = Stream(api, f"/v1/sandboxes/{made['id']}/events")
    seen = [stream.event() for _ in range(3)]
    api.ask("PUT", f"/v1/sandboxes/{made['id']}/tags", {"tags": {"b": "2"}})
    seen.append(stream.event())
    api.ask("DELETE", f"/v1/sandboxes/{made['id']}")
    seen.append(stream.event())
    assert stream.event() is None
    stream.close()
    assert [event[1] for event in seen if event] == ["created", "starting", "running", "tags", "terminated"]
    assert all(event and event[2]["id"] == event[0] and event[2]["sandbox_id"] == made["id"] for event in seen)


def test_a_stream_goes_on_where_it_was(api: Api) -> None:
    made = api.sandbox()
    path = f"/v1/sandboxes/{made['id']}/events"
    stream = Stream(api, path)
    first = stream.event()
    stream.close()
    assert first is not None
    api.ask("DELETE", f"/v1/sandboxes/{made['id']}")
    for headers, query in [({"Last-Event-ID": str(first[0])}, "?after=0"), ({}, f"?after={first[0]}")]:
        stream = Stream(api, path + query, headers)
        kinds = [event[1] for event in iter(stream.event, None)]
        assert kinds == ["starting", "running", "terminated"]
        stream.close()
    # What ended long ago has nothing more to say.
    last = api.ask("GET", f"{path}?follow=false").json["events"][-1]["id"]
    stream = Stream(api, f"{path}?after={last}")
    assert stream.event() is None
    stream.close()


def test_the_whole_environments_stream_begins_now(api: Api) -> None:
    api.sandbox()
    stream = Stream(api, "/v1/events?environment=dev")
    assert stream.block()[0].startswith(":")
    api.sandbox()
    made = api.sandbox(environment="dev")
    seen = stream.event()
    assert seen is not None
    assert (seen[1], seen[2]["sandbox_id"], seen[2]["environment"]) == ("created", made["id"], "dev")
    stream.close()


def test_a_silent_stream_says_that_it_is_there(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "COMMENT_S", 0.05)
    made = api.sandbox()
    own = f"/v1/sandboxes/{made['id']}/events"
    stream = Stream(api, own)
    # The event of its running may come after the answer to its create.
    last = [stream.event() for _ in range(3)][-1]
    stream.close()
    assert last is not None
    assert last[1] == "running"
    for path in ("/v1/events", own):
        stream = Stream(api, f"{path}?after={last[0]}")
        assert [stream.block()[0][0] for _ in range(4)] == [":"] * 4
        stream.close()


@pytest.mark.parametrize("path", ["/v1/events", "/v1/sandboxes/{}/events"])
def test_a_revoked_token_ends_its_streams(api: Api, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(websockets, "_RECHECK_S", 0.1)
    made = api.sandbox()
    token = api.token("main", Scope.READ)
    stream = Stream(api, path.format(made["id"]), token=token)
    assert stream.block()[0].startswith(":")
    api.ask("DELETE", f"/v1/tokens/{token.split('_')[1]}")
    with pytest.raises(http.client.IncompleteRead):
        stream.response.read()  # which waits for the next event, were it not broken off
    stream.close()


def test_not_followed_they_are_json(api: Api) -> None:
    made, other = api.sandbox(), api.sandbox(environment="dev")
    api.ask("DELETE", f"/v1/sandboxes/{made['id']}")

    def kinds(query: str) -> list[tuple[str, str]]:
        return [(e["sandbox_id"], e["kind"]) for e in api.ask("GET", f"/v1/events?follow=false{query}").json["events"]]

    own = [(made["id"], kind) for kind in ("created", "starting", "running", "terminated")]
    # Those of a start and of an end may be written just after the answer to it.
    eventually(lambda: len(kinds("")) == 7, what="that all events are written")
    assert kinds("&environment=main") == own
    third = api.ask("GET", "/v1/events?follow=false&environment=main").json["events"][2]
    assert kinds(f"&after={third['id']}&environment=main") == own[3:]
    assert kinds("&environment=dev") == [(other["id"], kind) for kind in ("created", "starting", "running")]


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "9" * 20, str(1 << 63), "9" * 300])
def test_an_id_that_is_none(api: Api, value: str) -> None:
    got = api.ask("GET", "/v1/events?follow=false", headers={"Last-Event-ID": value})
    assert (got.status, got.json["field"]) == (400, "Last-Event-ID")
