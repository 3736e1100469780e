"""Where the log of a replica goes: one line each, with the request that it is about."""

from __future__ import annotations

import logging
from typing import TextIO

from shoal.cluster.api.request.context import RequestIdFilter

_FORMAT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"
_PROTOCOLS = ("uvicorn", "websockets")
_protocols = logging.getLogger("shoal.protocols")
_serve = logging.getLogger("ray.serve")
"""Serve's own, as its documentation names it for what runs in a replica."""


def write_lines(stream: TextIO | None = None, level: int = logging.INFO) -> logging.Handler:
    """Writes what Shoal logs in this process to `stream` (none: to Serve's log, the replica's own file). Returns the
    handler.

    What the protocols' libraries log is `DEBUG` from then on: see `lower_protocols`.
    """
    handler = _ToServe() if stream is None else logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(_FORMAT))
    handler.addFilter(RequestIdFilter())
    logger = logging.getLogger("shoal")
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
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


class _Lowered(logging.Handler):
    """Logs again what it is handed, as one short line of `DEBUG`."""

    def emit(self, record: logging.LogRecord) -> None:
        if not _protocols.isEnabledFor(logging.DEBUG):
            return
        why = record.exc_info[1] if record.exc_info else None
        said = " ".join(f"{record.getMessage()} {'' if why is None else repr(why)}".split())
        _protocols.debug("%s: %s", record.name, said[:300])
