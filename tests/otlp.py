"""A receiver of OpenTelemetry's OTLP over HTTP, on a loopback port: it keeps what it is sent, decoded."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_PATIENCE_S = 30.0


@dataclass(frozen=True)
class SpanSeen:
    """One span. `service`: whose; ids in hexadecimal."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    failed: bool


@dataclass
class Receiver:
    """`url`: its base. `answer`: the status of each answer, or what blocks until it is given; `bodies`: what came on
    other paths than OTLP's."""

    url: str = ""
    answer: Callable[[], int] = lambda: 200
    spans: list[SpanSeen] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def until(self, holds: Callable[[], Any]) -> Any:
        """What `holds` gives once that is something."""
        end = time.monotonic() + _PATIENCE_S
        while not (found := holds()):
            assert time.monotonic() < end, [(span.service, span.name) for span in self.spans]
            time.sleep(0.01)
        return found

    def take(self, path: str, body: bytes, kind: str = "") -> None:
        if kind == "application/json":
            self.spans.extend(_json_spans(json.loads(body)))
        elif path.endswith("/v1/traces"):
            self.spans.extend(_spans(ExportTraceServiceRequest.FromString(body)))
        elif path.endswith("/v1/logs"):
            self.logs.extend(_logs(ExportLogsServiceRequest.FromString(body)))
        else:
            self.bodies.append(body)


@contextmanager
def receiver(port: int = 0) -> Iterator[Receiver]:
    """One that runs, and ends with the block."""
    seen = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = seen.answer()
            if status == 200:
                seen.headers.append({name.lower(): value for name, value in self.headers.items()})
                plain = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                seen.take(self.path, plain, self.headers["Content-Type"])
            try:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
            except OSError:
                pass  # it waited for the answer no longer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

    server = Server(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    seen.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _spans(request: ExportTraceServiceRequest) -> Iterator[SpanSeen]:
    for resource in request.resource_spans:
        service = _attributes(resource.resource.attributes).get("service.name", "")
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield SpanSeen(
                    service,
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    _attributes(span.attributes),
                    span.status.code == 2,
                )


def _json_spans(request: Any) -> Iterator[SpanSeen]:
    for resource in request["resourceSpans"]:
        service = _json_attributes(resource["resource"]).get("service.name", "")
        for span in resource["scopeSpans"][0]["spans"]:
            ids = (span["traceId"], span["spanId"], span.get("parentSpanId", ""))
            yield SpanSeen(service, span["name"], *ids, _json_attributes(span), span["status"].get("code") == 2)


def _json_attributes(item: Any) -> dict[str, Any]:
    return {pair["key"]: pair["value"]["stringValue"] for pair in item["attributes"]}


def _logs(request: ExportLogsServiceRequest) -> Iterator[dict[str, Any]]:
    for resource in request.resource_logs:
        for scope in resource.scope_logs:
            for record in scope.log_records:
                yield {
                    "body": record.body.string_value,
                    "time": record.time_unix_nano,
                    **_attributes(resource.resource.attributes),
                    **_attributes(record.attributes),
                }


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
