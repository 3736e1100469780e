"""The API against its own OpenAPI document: data that fits it and data that does not, for every operation.

By hand, for longer: `SHOAL_TEST_EXAMPLES=500 pytest tests/contract/api/test_schemathesis.py`; and `SHOAL_TEST_SEED=…`
for other data.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.core.parameters import ParameterLocation
from schemathesis.core.transport import Response
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import negative_data_rejection

from shoal.cluster.api.access import failure_bound
from shoal.cluster.api.app import make_app
from shoal.model.http import PROBLEM
from shoal.model.settings import Settings
from tests.api import Api, serving
from tests.fakes.cluster import FakeTransport

EXAMPLES = int(os.environ.get("SHOAL_TEST_EXAMPLES", "5"))
SEED = int(os.environ.get("SHOAL_TEST_SEED", "7"))
PATIENCE_S = 20

# Where it is slow, that is for the number of requests, not for any of them.
pytestmark = pytest.mark.timeout(60 + 10 * EXAMPLES)

CONFIG = {
    "seed": SEED,
    "generation": {"deterministic": "SHOAL_TEST_SEED" not in os.environ, "max-examples": EXAMPLES},
    # Its own examples beside random data; and where there is time, its own walk over every bound and type.
    "phases": {"examples": {"enabled": True}, "coverage": {"enabled": EXAMPLES > 10}, "fuzzing": {"enabled": True}},
    "checks": {
        # What JSON Schema cannot say is refused all the same: a path must be absolute, one of two members be given, 1.0
        # is no whole number.
        "positive_data_acceptance": {"enabled": False},
        # What is too large is told so, and so is a body that is not called JSON, before anyone looks what else is wrong
        # with it. A range that a file does not have is one, too.
        "negative_data_rejection": {"expected-statuses": [400, 401, 403, 404, 405, 409, 413, 415, 416, 429]},
    },
}

schemathesis.serializer.alias("application/x-tar", "application/octet-stream")

PROGRAMS = (["true"], ["echo", "a b"], ["false"], ["cat"])


class Home:
    """Where requests are sent to: a sandbox that runs, with a process and a file, whatever the requests before did to
    it.
    """

    def __init__(self, api: Api) -> None:
        self.api = api
        self._sandbox_id = ""

    @property
    def sandbox_id(self) -> str:
        if not self._sandbox_id or self.api.ask("GET", f"/v1/sandboxes/{self._sandbox_id}").json["state"] != "running":
            self._sandbox_id = self.api.sandbox()["id"]
            at = f"/v1/sandboxes/{self._sandbox_id}"
            self.api.ask("PUT", f"{at}/files?path=/tmp/file", raw=b"content")
        return self._sandbox_id

    def process_id(self) -> str:
        """Of one that has ended: every wait for it and every look at its output is over at once."""
        at = f"/v1/sandboxes/{self.sandbox_id}"
        self.api.ask("POST", f"{at}/exec", {"id": "p-home", "argv": ["echo", "a"]})
        return "p-home"

    def token_id(self) -> str:
        answer = self.api.ask("POST", "/v1/tokens", {"name": "to be revoked", "environment": "dev"})
        return str(answer.json["id"])

    def name(self, operation: str) -> str:
        if "by-name" in operation:
            self.api.ask("POST", "/v1/sandboxes", {"name": "known", "command": ["true"]})
            return "known"
        self.api.ask("POST", "/v1/environments", {"name": "known"})
        return "known"


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    """One API for all: what one request leaves behind is the next one's world. As many as come from here with wrong
    tokens are told so."""
    with pytest.MonkeyPatch.context() as patch, serving() as served:
        patch.setattr(failure_bound, "BURST", 1_000_000)
        yield served


@pytest.fixture(scope="module")
def home(api: Api) -> Home:
    return Home(api)


@pytest.fixture(scope="module")
def session(api: Api) -> Iterator[requests.Session]:
    with pytest.MonkeyPatch.context() as patch, requests.Session() as made:
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, "127.0.0.1")
        yield made


def document() -> BaseSchema:
    """The document, out of an application that nobody serves: so each operation is a test of its own."""
    fake = FakeTransport()
    app = make_app(fake, Settings())
    return schemathesis.openapi.from_dict(app.openapi(), config=SchemathesisConfig.from_dict(CONFIG))


# Left out: `watch` is a stream that never ends by itself, and has no `follow=false`: its own tests read it.
schema = document().exclude(path_regex=r"/watch$")


@schema.parametrize()
def test_every_answer_is_one_that_the_document_has(
    case: schemathesis.Case, api: Api, home: Home, session: requests.Session
) -> None:
    reach(case, home)
    headers = {"Authorization": f"Bearer {api.root}"}
    own = [problems_are_problems, ids_are_told]
    excluded = [negative_data_rejection] if says_less(case) or case.operation.label.endswith("/batch") else []
    case.call_and_validate(
        api.url, session, headers, additional_checks=own, excluded_checks=excluded, timeout=PATIENCE_S
    )


def says_less(case: schemathesis.Case) -> bool:
    """Whether a part of its query does not arrive, whatever it was to break: an empty list is no parameter at all."""
    return any(value is None or value in ([], {}) for value in case.query.values())


def reach(case: schemathesis.Case, home: Home) -> None:
    """In three cases of four, has a request that is good so far reach what it is for, instead of made-up ids; and ends
    what would last.
    """
    meta = case.meta
    operation = case.operation.label
    if meta is None:
        return
    good = not meta.is_negative_at(ParameterLocation.PATH) and zlib.crc32(repr((case.query, case.body)).encode()) % 4
    known: dict[str, Any] = {
        "sandbox_id": lambda: home.sandbox_id,
        "process_id": home.process_id,
        "token_id": home.token_id,
        "name": lambda: home.name(operation),
    }
    for name in case.path_parameters if good else ():
        if name in known:
            case.path_parameters[name] = known[name]()
    if isinstance(tags := case.query.get("tag"), list) and len(tags) > 32:
        # As many as may be, each as long as it may be, are more than uvicorn takes; and the gateway refuses far shorter
        # addresses.
        case.query["tag"] = [tag[:100] if isinstance(tag, str) else tag for tag in tags]
    if not meta.is_negative_at(ParameterLocation.QUERY):
        declared = {parameter.name for parameter in case.operation.query}
        if "follow" in declared and not operation.endswith("/stat"):
            case.query["follow"] = "false"
        if "timeout" in declared:
            case.query["timeout"] = "0.01"
        if good and "path" in declared:
            case.query["path"] = "/tmp" if operation.endswith(("/entries", "/archive")) else "/tmp/file"
    programs = operation.endswith(("/exec", "/processes")) and not meta.is_negative_at(ParameterLocation.BODY)
    if good and programs and isinstance(case.body, dict):
        case.body.pop("command", None)
        case.body["argv"] = PROGRAMS[len(case.body) % len(PROGRAMS)]


def problems_are_problems(ctx: object, response: Response, case: schemathesis.Case) -> None:
    """Everything that is refused is so by a problem document that says the same as the status line."""
    if response.status_code >= 400 and response.request.method != "HEAD":
        assert response.headers["content-type"] == [PROBLEM]
        problem = response.json()
        assert problem["status"] == response.status_code
        assert problem["request_id"] == response.headers["x-request-id"][0]
        assert problem["detail"]


def ids_are_told(ctx: object, response: Response, case: schemathesis.Case) -> None:
    """Every answer has the request's id."""
    assert len(response.headers["x-request-id"]) == 1
