"""A line of the log as JSON: what it is about stands in members of its own."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from shoal.model import call_context
from shoal.model.logs import write_logs

pytestmark = pytest.mark.anyio

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    logger = logging.getLogger("shoal")
    before = logger.level, logger.propagate
    stream = io.StringIO()
    handler = write_logs("json", "node", stream)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before[0])
    logger.propagate = before[1]


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_a_line_tells_what_it_is_about(stream: io.StringIO) -> None:
    log = logging.getLogger("shoal.node")
    log.warning("sandbox %s is gone", "sb-abc")
    call_context.begin_request("rq-1", f"00-{TRACE}-b7ad6b7169203331-01")
    call_context.about("sb-def")
    log.info("hostile \n\u202e\x1b[31m %s", 3, extra={"fields": {"status": 200, "route": ""}})
    first, second = lines(stream)
    assert (first["level"], first["component"], first["sandbox_id"]) == ("warning", "node", "sb-abc")
    assert first["time"].endswith("+00:00")
    assert "request_id" not in first
    assert {"request_id": "rq-1", "sandbox_id": "sb-def", "trace_id": TRACE, "status": 200}.items() <= second.items()
    assert second["message"] == "hostile \n\u202e\x1b[31m 3"
    assert "route" not in second


async def test_a_traceback_is_a_member(stream: io.StringIO) -> None:
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("shoal.node").exception("a defect")
    (line,) = lines(stream)
    assert line["level"] == "error"
    assert line["error"].endswith("ValueError: no")
