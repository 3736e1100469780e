"""What a piece of work belongs to: a request, a trace, a sandbox.

It goes along with calls between Shoal's processes (`carried`, `enter`), and log lines tell it. Each task has its own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_API = "opentelemetry.trace"


@dataclass(frozen=True, slots=True)
class CallContext:
    """`traceparent`: of the span that the work is part of, as W3C's Trace Context writes it; empty members: not
    known."""

    request_id: str = ""
    traceparent: str = ""
    sandbox_id: str = ""

    @property
    def trace_id(self) -> str:
        return self.traceparent[3:35]


NOTHING = CallContext()
_current: ContextVar[CallContext] = ContextVar("shoal_call", default=NOTHING)


def told() -> CallContext:
    """What the caller said: as `now`, but of this process's own spans it knows nothing."""
    return _current.get()


def now() -> CallContext:
    """What the running task belongs to."""
    context = _current.get()
    parent = _span_parent()
    return replace(context, traceparent=parent) if parent else context


def carried() -> dict[str, str] | None:
    """What a call to another process takes along; None where there is nothing."""
    context, parent = _current.get(), _span_parent()
    if context is NOTHING and not parent:
        return None
    found = {
        "request_id": context.request_id,
        "traceparent": parent or context.traceparent,
        "sandbox_id": context.sandbox_id,
    }
    return {name: value for name, value in found.items() if value} or None


def enter(carrier: Mapping[str, str] | None) -> None:
    """From here on the running task belongs to what its caller's `carried` says."""
    if carrier:
        _current.set(CallContext(**carrier))


def begin_request(request_id: str, traceparent: str = "") -> None:
    """The running task answers a request. `traceparent`: as `parse` gives it."""
    _current.set(CallContext(request_id, traceparent))


def about(sandbox_id: str) -> None:
    """From here on the running task is about a sandbox."""
    context = _current.get()
    _current.set(CallContext(context.request_id, context.traceparent, sandbox_id))


def leave() -> None:
    """The running task goes on for itself: a loop does not belong to the call that happened to start it."""
    if _current.get() is not NOTHING:
        _current.set(NOTHING)
    if _span_parent():
        from opentelemetry.context import Context, attach

        attach(Context())


def parse(header: str | None) -> str:
    """A `traceparent` header that can be followed; empty for any other."""
    if header is None or not _TRACEPARENT.fullmatch(header) or header.startswith("ff"):
        return ""
    _, trace, span, _ = header.split("-")
    return header if trace.strip("0") and span.strip("0") else ""


def is_recorded(traceparent: str) -> bool:
    """Whether who sent it records its trace. `traceparent`: as `parse` gives it."""
    return int(traceparent[-2:], 16) & 1 == 1


def loaded_api() -> Any:
    """OpenTelemetry's `trace` module where something in this process has loaded it, else None: then nobody traces."""
    return sys.modules.get(_API)


def _span_parent() -> str:
    """The `traceparent` of this process's span under way; empty if there is none."""
    api = loaded_api()
    if api is None:
        return ""
    span = api.get_current_span().get_span_context()
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}" if span.is_valid else ""
