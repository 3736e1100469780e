"""One trace and one sink on a real cluster: from a caller's span to the container, and from a command's output to a
file."""

from __future__ import annotations

import contextvars
import json
import secrets
import time
from urllib.parse import urlsplit

import pytest

import shoal
from shoal.model import call_context
from tests.cluster import Cluster
from tests.otlp import receiver

pytestmark = pytest.mark.engine


def test_a_callers_trace_reaches_the_container_and_output_reaches_the_sink(cluster: Cluster) -> None:
    telemetry = cluster.machine.settings.telemetry
    assert telemetry.traces is not None
    assert telemetry.sink is not None
    trace_id = secrets.token_hex(16)

    def create() -> shoal.Sandbox:
        call_context.begin_request("rq-trace", f"00-{trace_id}-{'b' * 16}-01")
        # A shape of its own: what is kept ready has started its container long before.
        return shoal.Sandbox.create("sh", "-c", "echo one; echo two >&2; printf three", pids=311)

    with receiver(urlsplit(telemetry.traces).port or 0) as seen:
        sandbox = contextvars.copy_context().run(create)
        wanted = {"create", "start", "start_container", "image", "container", "agent", "command"}
        seen.until(lambda: wanted <= {span.name for span in seen.spans if span.trace_id == trace_id})
        spans = {span.name: span for span in seen.spans if span.trace_id == trace_id}
    assert {span.service for span in spans.values()} == {"shoal-controller", "shoal-node"}
    assert spans["create"].parent_id == "b" * 16
    for child, parent in (("start", "create"), ("start_container", "start"), ("container", "start_container")):
        assert spans[child].parent_id == spans[parent].span_id
    assert spans["start_container"].attributes["shoal.sandbox_id"] == sandbox.id
    sandbox.wait()
    wanted = {"one", "two", "three", "created", "running", "terminated"}
    found: dict[str, str] = {}
    end = time.monotonic() + 60
    while not wanted <= set(found):
        assert time.monotonic() < end, found
        time.sleep(0.1)
        with open(urlsplit(telemetry.sink).path, "rb") as lines:
            entries = [entry for line in lines if (entry := json.loads(line))["sandbox_id"] == sandbox.id]
        found = {entry.get("text", entry.get("event")): entry.get("stream", "event") for entry in entries}
    assert {name: found[name] for name in ("one", "two", "three")} == {
        "one": "stdout",
        "two": "stderr",
        "three": "stdout",
    }
    assert found["terminated"] == "event"
