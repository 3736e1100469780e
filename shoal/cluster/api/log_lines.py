"""Where the log of a replica goes: one line each, with the request that it is about."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from shoal.cluster.api.context import RequestIdFilter

_FORMAT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"


def write_lines(stream: TextIO | None = None, level: int = logging.INFO) -> logging.Handler:
    """Writes what Shoal logs in this process to `stream` (none: stderr, which Serve keeps in the replica's own file). Returns the handler."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(logging.Formatter(_FORMAT))
    handler.addFilter(RequestIdFilter())
    logger = logging.getLogger("shoal")
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    return handler
