"""Where entries go: a file, a web server that takes lines of JSON, or a collector of OpenTelemetry's.

`send` blocks until all of a batch is there. It raises `SinkRefuses` where this very batch will never be taken, and
`OSError` where trying again may help.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from shoal.model.tracing import read_headers

ANSWER_S = 15.0
"""Seconds that a server has for its answer."""

_REFUSALS = frozenset({400, 413, 422})
_OTLP = "otlp+"


class SinkRefuses(Exception):  # as errors are named here
    """The batch is wrong for the sink, and would be the next time."""


class Sink(Protocol):
    """Takes entries, which are JSON objects, in their order."""

    def send(self, bodies: Sequence[bytes]) -> None: ...


def sink(url: str, headers: Path | None) -> Sink:
    """The sink of a setting: `file:///…`, `http(s)://…`, `otlp+http(s)://…`. `headers`: a file, see `read_headers`."""
    if url.startswith("file:"):
        return FileSink(Path(unquote(urlsplit(url).path)))
    if url.startswith(_OTLP):
        return OtlpSink(f"{url.removeprefix(_OTLP).rstrip('/')}/v1/logs", headers)
    return HttpSink(url, headers)


class FileSink:
    """A line for each entry, at the end of a file. It is opened for each batch, so that it may be renamed."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def send(self, bodies: Sequence[bytes]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        with os.fdopen(descriptor, "wb") as out:
            out.write(b"".join(body + b"\n" for body in bodies))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A POST that is sent on would arrive as a GET without its body, and its credentials elsewhere."""

    def redirect_request(self, *args: object, **options: object) -> None:
        return None


class HttpSink:
    """A POST of lines of JSON for each batch; any answer 2xx takes it."""

    def __init__(self, url: str, headers: Path | None) -> None:
        self._url = url
        self._headers = headers
        self._host = urlsplit(url).netloc  # what is logged: the rest may hold a key
        self._opener = urllib.request.build_opener(_NoRedirect)

    def send(self, bodies: Sequence[bytes]) -> None:
        self._post(b"".join(body + b"\n" for body in bodies), "application/x-ndjson")

    def _post(self, data: bytes, kind: str) -> None:
        headers = {**read_headers(self._headers), "Content-Type": kind}
        request = urllib.request.Request(self._url, data, headers, method="POST")
        try:
            with self._opener.open(request, timeout=ANSWER_S):  # the operator's own setting
                pass
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _REFUSALS:
                raise SinkRefuses(f"{self._host} refuses it with {error.code}") from None
            raise OSError(f"{self._host} answers with {error.code}") from None
        except http.client.HTTPException as error:
            raise OSError(f"{self._host} gave no valid answer: {error!r}") from None


class OtlpSink(HttpSink):
    """OTLP over HTTP: each entry is a log record. Its body is the line, or what the event is called; all else are
    attributes."""

    def send(self, bodies: Sequence[bytes]) -> None:
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
        from opentelemetry.proto.logs.v1.logs_pb2 import SEVERITY_NUMBER_INFO

        request = ExportLogsServiceRequest()
        resource = request.resource_logs.add()
        resource.resource.attributes.add(key="service.name").value.string_value = "shoal-sandboxes"
        scope = resource.scope_logs.add()
        for body in bodies:
            entry = json.loads(body)
            record = scope.log_records.add(severity_number=SEVERITY_NUMBER_INFO)
            record.time_unix_nano = int(datetime.fromisoformat(entry.pop("time")).timestamp() * 1e9)
            record.body.string_value = str(entry.pop("text", entry.get("event", entry["kind"])))
            for name, value in entry.items():
                attribute = record.attributes.add(key=f"shoal.{name}").value
                if isinstance(value, int):
                    attribute.int_value = value
                else:
                    attribute.string_value = value if isinstance(value, str) else json.dumps(value)
        self._post(request.SerializeToString(), "application/x-protobuf")
