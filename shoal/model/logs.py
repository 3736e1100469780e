"""How a process of Shoal's writes its log: text, or one JSON object a line. Each calls `write_logs` once.

The members of a JSON line:

    time, level, logger, message    RFC 3339 in UTC; debug, info, warning or error
    component                       controller, node, sandbox, builder, scaler or api; gateway and relay write the same
    request_id, sandbox_id          what it is about, where that is known
    trace_id                        the trace that it belongs to, where there is one
    error                           a traceback
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, TextIO

from shoal.model import call_context
from shoal.model.ids import SANDBOX

JSON = "json"
TEXT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"

_LEVELS = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning"}
_SANDBOX_ARGUMENTS = 4


def write_logs(
    log_format: str,
    component: str,
    stream: TextIO | None = None,
    level: int = logging.INFO,
    handler: logging.Handler | None = None,
) -> logging.Handler:
    """Writes what Shoal logs in this process from `level` on, to `handler` or else `stream` (none: stderr); returns the
    handler. `log_format`: `text` or `json`."""
    handler = handler or logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(component) if log_format == JSON else logging.Formatter(TEXT))
    handler.addFilter(ContextFilter())
    logger = logging.getLogger("shoal")
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    return handler


class ContextFilter(logging.Filter):
    """Gives each record the `request_id` of the request that it is about, `-` outside of any. Belongs on handlers."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = call_context.told().request_id or "-"
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object for each record. What a call passes as `extra={"fields": {…}}` become members of their own."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self.members(record), ensure_ascii=False, default=str)

    def members(self, record: logging.LogRecord) -> dict[str, Any]:
        """The line's members."""
        context = call_context.now()
        found = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": _LEVELS.get(record.levelno, "error"),
            "logger": record.name,
            "message": record.getMessage(),
            "component": self._component,
            "request_id": context.request_id,
            "sandbox_id": context.sandbox_id or _sandbox_of(record),
            "trace_id": context.trace_id,
            "error": self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else "",
            **getattr(record, "fields", {}),
        }
        return {name: value for name, value in found.items() if value not in ("", None)}


def _sandbox_of(record: logging.LogRecord) -> str:
    """The first sandbox's id among what the message is made of."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    texts = (each for each in arguments[:_SANDBOX_ARGUMENTS] if isinstance(each, str))
    return next((text for text in texts if SANDBOX.fullmatch(text)), "")
