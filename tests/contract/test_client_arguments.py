"""Arguments that are wrong, in memory and through the HTTP API: the same error, and the same field, whichever way the
cluster is reached.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal import Sandbox
from shoal.client.cluster import Client
from shoal.model.spec import SandboxSpec
from tests.api import Api, serving
from tests.fakes.cluster import FakeTransport

pytestmark = pytest.mark.timeout(60)
NAN = float("nan")


class ClientCase:
    """A client, and the cluster in memory that it reaches."""

    def __init__(self, client: Client, fake: FakeTransport) -> None:
        self.client = client
        self.fake = fake

    def create(self, *command: Any, **arguments: Any) -> Sandbox:
        return Sandbox.create(*command, client=self.client, **arguments)

    def spec(self) -> SandboxSpec:
        spec = self.fake.named("create")[-1]
        assert isinstance(spec, SandboxSpec)
        return spec


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with serving() as api:
        yield api


@pytest.fixture(params=["fake", "http"])
def case(request: pytest.FixtureRequest, api: Api) -> Iterator[ClientCase]:
    if request.param == "fake":
        fake = FakeTransport()
        yield ClientCase(Client(fake), fake)
        return
    with shoal.connect(api.url, token=api.root) as client:
        yield ClientCase(client, api.fake)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"cpu": "much"}, "cpu"),
    ({"cpu": NAN}, "cpu"),
    ({"cpu": (1, float("inf"))}, "cpu"),
    ({"memory": 1.5}, "memory"),
    ({"memory": -1}, "memory"),
    ({"disk": "1"}, "disk"),
    ({"gpu": "one"}, "gpu"),
    ({"gpu": -1}, "gpu"),
    ({"pids": Path("/")}, "pids"),
    ({"timeout": NAN}, "timeout"),
    ({"timeout": float("inf")}, "timeout"),
    ({"timeout": 10**400}, "timeout"),
    ({"timeout": "soon"}, "timeout"),
    ({"idle_timeout": b"1"}, "idle_timeout"),
    ({"pty": (24, 80)}, "pty"),
    ({"name": uuid.UUID(int=1)}, "name"),
    ({"name": "not a name"}, "name"),
    ({"environment": "*"}, "environment"),
    ({"image": Path("/x")}, "image"),
    ({"workdir": 3}, "workdir"),
    ({"workdir": Path("relative")}, "workdir"),
    ({"user": 0}, "user"),
    ({"env": {"A": 1}}, "env"),
    ({"env": {1: "A"}}, "env"),
    ({"tags": {"a": b"x"}}, "tags"),
    ({"network": ["none"]}, "network"),
    ({"region": 3}, "region"),
    ({"runtime": "kvm"}, "runtime"),
    ({"idempotency_key": 7}, "idempotency_key"),
    ({"deadline": "5"}, "deadline"),
    ({"deadline": NAN}, "deadline"),
    ({"deadline": -1}, "deadline"),
    ({"deadline": None}, "deadline"),
]


@pytest.mark.parametrize(("arguments", "field"), BAD, ids=lambda value: str(value)[:40])
def test_a_create_that_is_wrong_is_told_by_field(case: ClientCase, arguments: dict[str, Any], field: str) -> None:
    before = len(case.fake.calls)
    with pytest.raises(shoal.InvalidRequest) as caught:
        case.create(**arguments)
    assert caught.value.field == field
    wanted, common = ([{}, arguments], {}) if "deadline" not in arguments else ([{}], arguments)
    with pytest.raises(shoal.InvalidRequest) as caught:
        Sandbox.create_many(wanted, client=case.client, **common)
    assert caught.value.field == field
    assert not {name for name, _ in case.fake.calls[before:]} & {"create", "create_many"}


def test_a_command_is_of_texts(case: ClientCase) -> None:
    for word in (Path("/x"), 5, b"x", None):
        with pytest.raises(shoal.InvalidRequest) as caught:
            case.create("sleep", word)
        assert caught.value.field == "command"
    for command in ("ls", 5):
        with pytest.raises(shoal.InvalidRequest) as caught:
            Sandbox.create_many([{"command": command}], client=case.client)  # type: ignore[list-item]
        assert caught.value.field == "command"


def test_of_many_that_are_wrong_each_is_told_and_the_others_are_made(case: ClientCase) -> None:
    wanted: Any = [{}, {"timeout": NAN}, {"tags": {"a": "b"}}, {"name": uuid.UUID(int=1)}]
    outcomes = Sandbox.create_many(wanted, return_errors=True, client=case.client)
    assert [type(each) for each in outcomes] == [Sandbox, shoal.InvalidRequest, Sandbox, shoal.InvalidRequest]
    assert [getattr(each, "field", None) for each in outcomes] == [None, "timeout", None, "name"]
    assert outcomes[2].tags == {"a": "b"}  # type: ignore[union-attr]


def test_a_directory_may_be_a_path(case: ClientCase) -> None:
    case.create(workdir=Path("/work"), timeout=60)
    assert case.spec().workdir == "/work"


CALLS: list[tuple[Callable[[Sandbox], Any], str]] = [
    (lambda sandbox: sandbox.set_tags({"a": b"x"}), "tags"),  # type: ignore[dict-item]
    (lambda sandbox: sandbox.set_tags({"": "x"}), "tags"),
    (lambda sandbox: sandbox.expose("x"), "port"),  # type: ignore[arg-type]
    (lambda sandbox: sandbox.expose(True), "port"),
    (lambda sandbox: sandbox.unexpose("x"), "port"),  # type: ignore[arg-type]
    (lambda sandbox: sandbox.unexpose(80.9), "port"),  # type: ignore[arg-type]
    (lambda sandbox: sandbox.unexpose(0), "port"),
    (lambda sandbox: sandbox.connect_token("x"), "port"),  # type: ignore[arg-type]
    (lambda sandbox: sandbox.connect_token(80, NAN), "expires_in"),
    (lambda sandbox: Sandbox.from_name("..", client=sandbox._client), "name"),
    (lambda sandbox: Sandbox.from_name("", client=sandbox._client), "name"),
    (lambda sandbox: Sandbox.from_name("a", environment="..", client=sandbox._client), "environment"),
    (lambda sandbox: Sandbox.from_id(uuid.UUID(int=1), client=sandbox._client), "sandbox_id"),  # type: ignore[arg-type]
    (lambda sandbox: Sandbox.list(tags={"a": b"x"}, client=sandbox._client), "tags"),  # type: ignore[dict-item]
    (lambda sandbox: Sandbox.list(limit=0, client=sandbox._client), "limit"),
    (lambda sandbox: Sandbox.list(limit=2.5, client=sandbox._client), "limit"),  # type: ignore[arg-type]
    (lambda sandbox: Sandbox.list(region="", client=sandbox._client), "region"),
    (lambda sandbox: sandbox._client.environment(".."), "name"),
    (lambda sandbox: sandbox._client.create_environment(Path("x")), "name"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "field"), CALLS)
def test_other_calls_that_are_wrong_are_told_by_field(
    case: ClientCase, call: Callable[[Sandbox], Any], field: str
) -> None:
    with pytest.raises(shoal.InvalidRequest) as caught:
        call(case.create())
    assert caught.value.field == field


def test_what_cannot_be_sent_is_told(api: Api) -> None:
    with (
        shoal.connect(api.url, token=api.root) as client,
        pytest.raises(shoal.InvalidRequest, match="PosixPath") as caught,
    ):
        client.set_quota("main", sandboxes=Path("/x"))  # type: ignore[arg-type]
    assert caught.value.field == "sandboxes"
