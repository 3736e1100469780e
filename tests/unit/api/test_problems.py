"""Every error is a problem document, found again by its request id."""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Iterator

import pytest

from shoal.cluster.api.request.log_lines import write_lines
from shoal.cluster.api.request.problems import Refused, answer, document
from shoal.model.errors import InvalidRequest, PathNotFound, ShoalError, error_classes
from shoal.model.http import PROBLEM, STATUS, error_from_problem, status_of
from shoal.model.logs import ContextFilter
from tests.api import Answer, Api

STATUSES = {
    "invalid_request": 400, "command_not_found": 400, "command_not_executable": 400, "unauthenticated": 401,
    "permission_denied": 403, "not_found": 404, "sandbox_not_found": 404, "process_not_found": 404,
    "image_not_found": 404, "path_not_found": 404, "user_not_found": 404, "environment_not_found": 404,
    "token_not_found": 404, "tunnel_not_found": 404, "node_not_found": 404, "pool_not_found": 404,
    "volume_not_found": 404, "secret_not_found": 404,
    "deadline_exceeded": 408,
    "already_exists": 409, "failed_precondition": 409, "command_failed": 409, "no_score": 409, "sandbox_ended": 410,
    "quota_exceeded": 429, "internal": 500, "unavailable": 503, "no_capacity": 503, "relative_path": 400,
    "is_a_directory": 400, "not_a_directory": 400, "build_not_found": 404, "rollout_not_found": 404,
    "image_build_error": 409,
}  # fmt: skip


def classes() -> list[type[ShoalError]]:
    return [cls for cls in error_classes() if cls is not Refused and "code" in vars(cls)]


def is_problem(got: Answer, status: int, code: str) -> None:
    assert (got.status, got.headers["content-type"]) == (status, PROBLEM)
    problem = got.json
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"urn:shoal:error:{code}"
    assert problem["request_id"] == got.headers["x-request-id"]
    assert problem["title"]
    assert problem["detail"]
    assert isinstance(problem["retryable"], bool)


def test_the_map_is_complete() -> None:
    assert {cls.code for cls in classes()} == STATUSES.keys()
    assert STATUS.keys() <= set(error_classes())


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.code)
def test_each_error_has_its_answer(api: Api, cls: type[ShoalError]) -> None:
    error = cls("what is wrong; the remedy", reason="timeout", exit_code=3, field="name", state="running")
    assert status_of(error) == STATUSES[cls.code]
    api.fake.fail_next("get", error)
    got = api.ask("GET", "/v1/sandboxes/sb-a")
    is_problem(got, STATUSES[cls.code], cls.code)
    back = error_from_problem(got.json)
    assert type(back) is cls
    assert (back.message, back.fields, back.retryable) == (error.message, error.fields, error.retryable)


def test_what_http_has_a_status_of_its_own_for_is_an_invalid_request_to_clients() -> None:
    refused = Refused(413, "too much; send less", limit=5)
    assert (document(refused)["status"], document(refused)["title"]) == (413, "Content Too Large") or (
        document(refused)["status"],
        document(refused)["title"],
    ) == (413, "Request Entity Too Large")
    assert type(error_from_problem(document(refused))) is InvalidRequest
    assert answer(refused, "r").status_code == 413


def test_what_is_no_text_is_spelt_out(api: Api) -> None:
    error = PathNotFound("'/\udcff' is not there", path="/\udcff", more={"\ud800": ["ü\udc80"]})
    api.fake.fail_next("get", error)
    got = api.ask("GET", "/v1/sandboxes/sb-a")
    is_problem(got, 404, "path_not_found")
    assert (got.json["detail"], got.json["path"]) == ("'/\\udcff' is not there", "/\\udcff")
    assert got.json["more"] == {"\\ud800": ["ü\\udc80"]}
    made = api.sandbox()
    is_problem(api.ask("GET", f"/v1/sandboxes/{made['id']}/files?path=/%FF"), 404, "path_not_found")


def test_an_unknown_address(api: Api) -> None:
    for path in ("/v1", "/v2/sandboxes", "/v1/sandboxes/a/b/c/d"):
        is_problem(api.ask("GET", path), 404, "not_found")


def test_a_method_that_is_not_there(api: Api) -> None:
    got = api.ask("PATCH", "/v1/defaults")
    is_problem(got, 405, "invalid_request")
    assert got.headers["allow"] == "GET"


def test_a_defect_says_nothing_but_its_request_id(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    api.fake.fail_next("get", ZeroDivisionError("the secret's digits"))  # type: ignore[arg-type]
    got = api.ask("GET", "/v1/sandboxes/sb-a", headers={"X-Request-Id": "find-me.1"})
    is_problem(got, 500, "internal")
    assert b"secret" not in got.body
    # Not asyncio's: it tells of what earlier tests left to the garbage collector whenever that comes by.
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR and r.name.startswith("shoal")]
    assert "find-me.1" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


class TestRequestIds:
    def test_a_clients_own_is_kept(self, api: Api) -> None:
        got = api.ask("GET", "/v1/health", headers={"X-Request-Id": "Abc-1._"})
        assert got.headers["x-request-id"] == "Abc-1._"

    @pytest.mark.parametrize("sent", ["", "a b", "x" * 65, "a\tb", "ü", 'a"b'])
    def test_what_is_none_is_replaced(self, api: Api, sent: str) -> None:
        got = api.ask("GET", "/v1/health", headers={"X-Request-Id": sent})
        assert re.fullmatch(r"[0-9a-f]{20}", got.headers["x-request-id"])

    def test_each_request_has_one_of_its_own(self, api: Api) -> None:
        ids = {api.ask("GET", "/v1/nowhere").headers["x-request-id"] for _ in range(20)}
        assert len(ids) == 20


def until_told(lines: list[logging.LogRecord], count: int) -> list[logging.LogRecord]:
    """The access log's lines, which are written once the answer is out."""
    end = time.monotonic() + 20  # a machine may stand still for seconds
    while len(told := [record for record in lines if record.name == "shoal.api"]) < count:
        assert time.monotonic() < end
        time.sleep(0.005)
    return told


class TestLog:
    @pytest.fixture
    def lines(self) -> Iterator[list[logging.LogRecord]]:
        records: list[logging.LogRecord] = []

        class Keep(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                records.append(record)

        handler, logger = Keep(), logging.getLogger("shoal")
        handler.addFilter(ContextFilter())
        before = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        yield records
        logger.removeHandler(handler)
        logger.setLevel(before)

    def test_lines_are_written_with_their_requests(self, api: Api) -> None:
        logger = logging.getLogger("shoal")
        before = logger.level, logger.propagate
        stream = io.StringIO()
        handler = write_lines(stream)
        try:
            got = api.ask("GET", "/v1/defaults")
            end = time.monotonic() + 20  # a machine may stand still for seconds
            while "\n" not in stream.getvalue():
                assert time.monotonic() < end
                time.sleep(0.005)
        finally:
            logger.removeHandler(handler)
            logger.level, logger.propagate = before
        (line,) = stream.getvalue().splitlines()
        assert f"INFO shoal.api [{got.headers['x-request-id']}] method=GET" in line

    def test_each_request_is_one_line(self, api: Api, lines: list[logging.LogRecord]) -> None:
        made = api.sandbox(environment="dev")
        got = api.ask("GET", f"/v1/sandboxes/{made['id']}/wait?timeout=0")
        api.ask("GET", "/v1/nowhere?key=hush", token=None)
        told = until_told(lines, 3)
        created, waited, nowhere = (record.getMessage() for record in told)
        token_id = api.root.split("_")[1]
        assert 'method=POST route="/v1/sandboxes" status=201' in created
        assert f"outcome=ok token={token_id} environment=dev" in created
        assert 'method=GET route="/v1/sandboxes/{sandbox_id}/wait" status=200' in waited
        assert waited.endswith(f"request={got.headers['x-request-id']}")
        assert told[1].request_id == got.headers["x-request-id"]  # type: ignore[attr-defined]
        assert 'route="-" status=404' in nowhere
        everything = "\n".join(record.getMessage() for record in lines)
        assert "hush" not in everything
        assert api.root not in everything
