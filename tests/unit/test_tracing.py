"""One trace from a caller through the API and the controller to a node, as a receiver of OTLP gets it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shoal.client.dual_method import dual_method
from shoal.model import tracing
from shoal.model.errors import NotFound
from shoal.transport.http import HttpTransport
from tests.api import Api, serving
from tests.otlp import Receiver, SpanSeen, receiver

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


@pytest.fixture
def seen() -> Iterator[Receiver]:
    """A receiver, to which this process sends its spans."""
    with receiver() as found:
        tracing.start(found.url, "test", names={"host.name": "here"})
        yield found
        tracing.stop()


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as found:
        yield found


def only(seen: Receiver, name: str) -> SpanSeen:
    """The one span of that name, once it has come: a request's ends a little after its answer."""

    def found() -> list[SpanSeen]:
        tracing.flush()
        return [span for span in seen.spans if span.name == name]

    (span,) = seen.until(found)
    return span


def test_a_create_is_one_trace(api: Api, seen: Receiver) -> None:
    made = api.ask("POST", "/v1/sandboxes", {"image": "python:3.12"}, headers={"traceparent": SAMPLED})
    request, create, start = (only(seen, name) for name in ("POST /v1/sandboxes", "create", "start"))
    assert {request.trace_id, create.trace_id, start.trace_id} == {TRACE}
    assert (request.parent_id, create.parent_id, start.parent_id) == (PARENT, request.span_id, create.span_id)
    facts = {"shoal.sandbox_id": made.json["id"], "shoal.environment": "main", "shoal.outcome": "ok"}
    assert {**facts, "shoal.image": "python:3.12"}.items() <= create.attributes.items()
    assert request.attributes["http.response.status_code"] == 201
    assert start.attributes["shoal.sandbox_id"] == made.json["id"]


def test_an_exec_tells_the_commands_own_time(api: Api, seen: Receiver) -> None:
    at = f"/v1/sandboxes/{api.sandbox()['id']}/exec"
    assert api.ask("POST", at, {"argv": ["true"]}, headers={"traceparent": SAMPLED}).status == 200
    request = only(seen, "POST /v1/sandboxes/{sandbox_id}/exec")
    assert request.trace_id == TRACE
    assert 0 < request.attributes["shoal.command_seconds"] < 10


def test_what_fails_says_how(api: Api, seen: Receiver) -> None:
    api.ask("DELETE", "/v1/sandboxes/sb-none", headers={"traceparent": SAMPLED})
    assert only(seen, "terminate").attributes["shoal.outcome"] == "sandbox_not_found"
    assert only(seen, "DELETE /v1/sandboxes/{sandbox_id}").attributes["shoal.outcome"] == "sandbox_not_found"


def test_a_caller_that_records_nothing_is_followed(api: Api, seen: Receiver) -> None:
    api.ask("GET", "/v1/defaults", headers={"traceparent": NOT_SAMPLED})
    api.ask("GET", "/v1/ready")
    api.ask("GET", "/v1/defaults", headers={"traceparent": "rubbish"})
    assert only(seen, "GET /v1/defaults").trace_id != TRACE
    assert [span for span in seen.spans if "ready" in span.name] == []


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    """What a user's program traces with; a real one can be set only once in a process."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    monkeypatch.setattr(tracing._Caller, "provider", None)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, exporter
    provider.shutdown()


class Thing:
    @dual_method
    async def work(self, transport: HttpTransport) -> None:
        await transport.calls.json("GET", "/v1/defaults")


def test_a_program_that_traces_sees_its_calls(api: Api, program: tuple[TracerProvider, InMemorySpanExporter]) -> None:
    provider, exporter = program
    transport = HttpTransport(api.url, api.root)
    with receiver() as seen:
        Thing().work(transport)  # outside of any span of the program's: none
        with provider.get_tracer("a program").start_as_current_span("mine"):
            Thing().work(transport)
        assert [span.name for span in exporter.get_finished_spans()] == ["Thing.work", "mine"]
        work, mine = exporter.get_finished_spans()
        assert work.parent is not None
        assert work.parent.span_id == mine.context.span_id
        tracing.start(seen.url, "test", names={})
        with provider.get_tracer("a program").start_as_current_span("mine") as span:
            Thing().work(transport)
            trace_id = f"{span.get_span_context().trace_id:032x}"
        assert only(seen, "GET /v1/defaults").trace_id == trace_id
        tracing.stop()


class Nest:
    """Calls that call another at once, or after a wait; and that end in other ways than well."""

    @dual_method
    async def inner(self) -> None:
        await asyncio.sleep(0)

    @dual_method
    async def outer(self, how: str) -> str:
        if how == "waits":
            await asyncio.sleep(0)
        await self.inner.aio()
        if how == "fails":
            raise NotFound("no such thing")
        if how == "hangs":
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)  # tidies up
        return how


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["at once", "waits", "fails", "hangs"])
async def test_a_call_that_calls_another_is_above_it(
    how: str, program: tuple[TracerProvider, InMemorySpanExporter]
) -> None:
    provider, exporter = program
    with provider.get_tracer("a program").start_as_current_span("mine") as mine:
        if how == "fails":
            with pytest.raises(NotFound):
                await Nest().outer.aio(how)
        elif how == "hangs":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(Nest().outer.aio(how), 0.01)
        else:
            assert await Nest().outer.aio(how) == how
        assert trace.get_current_span() is mine
    inner, outer, _ = exporter.get_finished_spans()
    assert (inner.name, outer.name) == ("Nest.inner", "Nest.outer")
    assert inner.parent is not None
    assert outer.parent is not None
    assert (inner.parent.span_id, outer.parent.span_id) == (outer.context.span_id, mine.get_span_context().span_id)
    assert outer.start_time is not None
    assert inner.start_time is not None
    assert outer.start_time <= inner.start_time
    assert outer.status.is_ok is (how != "fails")


def test_a_receiver_that_is_away_harms_nobody(api: Api) -> None:
    with receiver() as gone:
        url = gone.url
    tracing.start(url, "test", names={})
    try:
        assert api.ask("GET", "/v1/defaults", headers={"traceparent": SAMPLED}).status == 200
    finally:
        tracing.stop()
