"""Where the log of a replica goes: one line each, with the request that it is about."""

from __future__ import annotations

import logging
from typing import TextIO

from shoal.model.logs import JSON, JsonFormatter, write_logs

_PROTOCOLS = ("uvicorn", "websockets")
_protocols = logging.getLogger("shoal.protocols")
_serve = logging.getLogger("ray.serve")
"""Serve's own, as its documentation names it for what runs in a replica."""


def write_lines(stream: TextIO | None = None, level: int = logging.INFO, log_format: str = "text") -> logging.Handler:
    """Writes what Shoal logs in this process to `stream` (none: to Serve's log, the replica's own file). Returns the
    handler.

    What the protocols' libraries log is `DEBUG` from then on: see `lower_protocols`.
    """
    to_serve = _MembersToServe() if log_format == JSON else _ToServe()
    handler = write_logs(log_format, "api", stream, level, to_serve if stream is None else None)
    lower_protocols()
    return handler


def lower_protocols() -> None:
    """Makes each thing that uvicorn and websockets log one line of `DEBUG`.

    They log warnings and tracebacks of what strangers send, text that is not UTF-8 for one: who sends rubbish must not
    fill the log with it. What goes wrong in the application itself is logged by its frame. Again is harmless.
    """
    for name in _PROTOCOLS:
        logger = logging.getLogger(name)
        logger.handlers = [_Lowered()]
        logger.propagate = False
    # Without a level of its own it is asked, and formats, at every message.
    errors = logging.getLogger("uvicorn.error")
    if errors.level == logging.NOTSET:
        errors.setLevel(logging.WARNING)


class _ToServe(logging.Handler):
    """Hands each line to Serve's log. What is written to stderr gets there, too, but Serve reads the source of the
    whole stack for each line: a seventh of a replica's CPU time."""

    def emit(self, record: logging.LogRecord) -> None:
        _serve.info("%s", self.format(record))


class _MembersToServe(logging.Handler):
    """Hands Serve, which writes JSON then, the members of each line; they stand beside Serve's own."""

    def emit(self, record: logging.LogRecord) -> None:
        assert isinstance(self.formatter, JsonFormatter)
        members = self.formatter.members(record)
        _serve.info("%s", members.pop("message"), extra=members)


class _Lowered(logging.Handler):
    """Logs again what it is handed, as one short line of `DEBUG`."""

    def emit(self, record: logging.LogRecord) -> None:
        if not _protocols.isEnabledFor(logging.DEBUG):
            return
        why = record.exc_info[1] if record.exc_info else None
        said = " ".join(f"{record.getMessage()} {'' if why is None else repr(why)}".split())
        _protocols.debug("%s: %s", record.name, said[:300])
