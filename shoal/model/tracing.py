"""Spans, in OpenTelemetry's way. Off until a process calls `start`: then nothing of OpenTelemetry is loaded.

A process of the cluster makes spans of its own once it was started. Anywhere else, such as in a user's program, there
are spans exactly while a span of the program's own is being recorded, and they go where that one goes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.model import call_context
from shoal.model.errors import ShoalError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

_log = logging.getLogger("shoal.tracing")

SANDBOX_ID, ENVIRONMENT, IMAGE = "shoal.sandbox_id", "shoal.environment", "shoal.image"
OUTCOME = "shoal.outcome"
"""`ok`, or an error's code."""
COMMAND_SECONDS = "shoal.command_seconds"
"""Of an exec: what the command itself took. No span of its own, which would cost as much as the request's."""

_SEND_S = 3.0
"""Seconds for one batch, its retries included: so long a program's end may wait for a receiver that is away."""
_TRACES = "/v1/traces"


class _Caller:
    """The tracer of the program that this process is, and where it is from: a new one for each span would cost as much
    as the span."""

    provider: Any = None
    tracer: Tracer | None = None


class _Own:
    """This process's tracer, once it was started."""

    provider: TracerProvider | None = None
    tracer: Tracer | None = None


def start(
    endpoint: str, component: str, *, share: float = 1.0, headers: Path | None = None, names: Mapping[str, str]
) -> None:
    """Sends the spans of this process to the OTLP/HTTP receiver at `endpoint` from now on.

    `share`: of the traces that begin here, how many are recorded; others follow their caller. `headers`: a file, see
    `read_headers`; `names`: attributes of the process. What cannot be sent is dropped after some retries.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    stop()
    resource = Resource.create({**resource_of(component, names)})
    provider = TracerProvider(resource=resource, sampler=ParentBasedTraceIdRatio(share))
    where = f"{endpoint.rstrip('/')}{_TRACES}"
    exporter = OTLPSpanExporter(where, headers=read_headers(headers), timeout=_SEND_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _Own.provider, _Own.tracer = provider, provider.get_tracer("shoal")


def resource_of(component: str, names: Mapping[str, str]) -> dict[str, str]:
    """What the spans of a process have in common, by OpenTelemetry's conventions."""
    return {"service.name": f"shoal-{component}", "service.namespace": "shoal", **names}


def flush() -> None:
    """Sends what has ended. Blocks."""
    if _Own.provider is not None:
        _Own.provider.force_flush()


def stop() -> None:
    """Sends what is left, and makes no more spans. Blocks. Idempotent."""
    provider, _Own.provider, _Own.tracer = _Own.provider, None, None
    if provider is not None:
        provider.shutdown()


def read_headers(file: Path | None) -> dict[str, str]:
    """The headers in a file of lines `Name: value`; those that cannot be read are logged and left out."""
    if file is None:
        return {}
    try:
        lines = [line.partition(":") for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        _log.warning("the file of headers for telemetry: %s", error)
        return {}
    return {name.strip(): value.strip() for name, _, value in lines}


def span(
    name: str, attributes: Mapping[str, Any] | None = None, *, server: bool = False, root: bool = True
) -> AbstractContextManager[Any]:
    """The work in the block is a span, if this process traces and what it is part of is recorded. Gives the span, or
    None.

    `server`: it answers a caller in another process; `root`: it may begin a trace. A `ShoalError` becomes its outcome.
    """
    tracer = _tracer()
    if tracer is None:
        return _NONE  # the same for all, as calls of all kinds pass here
    api = call_context.loaded_api()
    current = api.get_current_span()
    parent: Context | None = None
    if current.get_span_context().is_valid:
        if not current.is_recording():
            return _NONE
    elif told := call_context.told().traceparent:
        if not call_context.is_recorded(told):
            return _NONE
        parent = _context_of(api, told)
    elif not root:
        return _NONE
    kind = api.SpanKind.SERVER if server else api.SpanKind.INTERNAL
    return _Under(api, tracer.start_span(name, parent, kind, attributes and _present(attributes)))


def below(name: str) -> AbstractContextManager[Any]:
    """As `span`, below the span that this process is known to record at the moment: an exec asks nothing twice."""
    api = call_context.loaded_api()
    return _Under(api, (_Own.tracer or _tracer_of_program(api)).start_span(name))


_NONE: AbstractContextManager[None] = nullcontext()


class _Under(AbstractContextManager[Any]):
    """A span that is the current one in the block, and ends with it. As `use_span`, without the generators of that: an
    exec passes here."""

    __slots__ = ("_api", "_context", "_made", "_token")

    def __init__(self, api: Any, made: Span) -> None:
        self._api = api
        self._made = made

    def __enter__(self) -> Span:
        from opentelemetry import context

        self._context = context
        self._token = context.attach(self._api.set_span_in_context(self._made))
        return self._made

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._context.detach(self._token)
        if error is None:
            pass
        elif isinstance(error, ShoalError):
            self._made.set_attribute(OUTCOME, error.code)
            fail(self._made, error.message[:300])
        elif isinstance(error, Exception):
            self._made.record_exception(error)
            fail(self._made, repr(error)[:300])
        self._made.end()


def note(made: Any, **attributes: Any) -> None:
    """Adds attributes to what `span` gave."""
    if made is not None:
        made.set_attributes(_present({_NAMES[name]: value for name, value in attributes.items()}))


def fail(made: Any, why: str) -> None:
    """Marks what `span` gave as failed, if there is a reason."""
    if made is not None and why:
        from opentelemetry.trace import Status, StatusCode

        made.set_status(Status(StatusCode.ERROR, why))


def steps(took: Sequence[tuple[str, float]], end: float) -> None:
    """Spans of steps, in seconds each, that another process took one after another until `end` (unix seconds)."""
    tracer = _Own.tracer
    if tracer is None or not call_context.loaded_api().get_current_span().is_recording():
        return
    ends_at = int(end * 1e9)
    for name, seconds in reversed(took):
        begins_at = ends_at - int(seconds * 1e9)
        tracer.start_span(name, start_time=begins_at).end(ends_at)
        ends_at = begins_at


_NAMES = {
    "sandbox_id": SANDBOX_ID,
    "environment": ENVIRONMENT,
    "image": IMAGE,
    "outcome": OUTCOME,
    "route": "http.route",
    "status": "http.response.status_code",
    "command_s": COMMAND_SECONDS,
}


def _tracer() -> Tracer | None:
    if _Own.tracer is not None:
        return _Own.tracer
    api = call_context.loaded_api()
    if api is None or not api.get_current_span().is_recording():
        return None
    return _tracer_of_program(api)


def _tracer_of_program(api: Any) -> Tracer:
    provider = api.get_tracer_provider()
    if _Caller.tracer is None or provider is not _Caller.provider:
        _Caller.provider, _Caller.tracer = provider, api.get_tracer("shoal")
    return _Caller.tracer


def _context_of(api: Any, traceparent: str) -> Context:
    """With the span of a caller in another process as the current one."""
    _, trace_id, span_id, flags = traceparent.split("-")
    parent = api.SpanContext(int(trace_id, 16), int(span_id, 16), True, api.TraceFlags(int(flags, 16)))
    context: Context = api.set_span_in_context(api.NonRecordingSpan(parent))
    return context


def _present(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value not in ("", None)}
