"""What strangers send does not fill the replica's log."""

from __future__ import annotations

import gc
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from shoal.cluster.api.request.log_lines import write_lines
from tests.contract.api.lab import Lab
from tests.contract.api.rawsocket import TEXT, connection, frame, websocket

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

TIMES = 5


@dataclass
class Log:
    """What a replica writes, and what reached the handlers of everybody else."""

    stream: io.StringIO = field(default_factory=io.StringIO)
    others: list[str] = field(default_factory=list)

    def lines(self, logger: str) -> list[str]:
        return [line for line in self.stream.getvalue().splitlines() if f" {logger} [" in line]


class _Root(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.others.append(f"{record.name}: {record.getMessage()}")


@pytest.fixture(params=[logging.INFO, logging.DEBUG])
def log(place: Lab, request: pytest.FixtureRequest) -> Iterator[Log]:
    """The log of a replica at a level."""
    gc.collect()  # what earlier tests left is told of here, and not while others' handlers are looked at
    loggers = [logging.getLogger(name) for name in ("shoal", "uvicorn", "uvicorn.error", "websockets")]
    before = [(logger.level, logger.propagate, logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.handlers = []
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    log = Log()
    root = _Root(log)
    logging.getLogger().addHandler(root)
    write_lines(log.stream, request.param)
    yield log
    logging.getLogger().removeHandler(root)
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers = handlers


async def _bad_text(place: Lab) -> None:
    async with websocket(f"{place.at}/attach", place.token) as socket:
        await socket.send(frame(TEXT, b"\xff\xfe"))
        assert await socket.close_code() == 1007


async def _no_token(place: Lab) -> None:
    with pytest.raises(AssertionError, match="401"):
        async with websocket(f"{place.at}/attach", "shoal_tk-none_none"):
            pass


async def _no_http(place: Lab) -> None:
    async with connection(place.server.url, "GET /\x01 HTTP/1.1\nHost: a") as socket:
        assert (await socket.reader.readline()).startswith(b"HTTP/1.1 400 ")


async def test_bad_input_is_no_line_but_of_debug(place: Lab, log: Log) -> None:
    for _ in range(TIMES):
        await _bad_text(place)
        await _no_token(place)
        await _no_http(place)
    told = log.lines("shoal.protocols")
    if logging.getLogger("shoal").level == logging.DEBUG:
        assert sum("Invalid UTF-8" in line for line in told) == TIMES
        assert sum("Invalid HTTP request" in line for line in told) == TIMES
        assert all(" DEBUG " in line for line in told)
    else:
        assert told == []
    assert "Traceback" not in log.stream.getvalue()
    # One line each of those that were requests, and nothing beside.
    assert len(log.stream.getvalue().splitlines()) == len(log.lines("shoal.api")) + len(told)
    assert len(log.lines("shoal.api")) <= 2 * TIMES
    assert [line for line in log.others if not line.startswith("asyncio: Using selector")] == []
