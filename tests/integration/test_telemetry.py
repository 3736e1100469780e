"""One trace and one sink on a real cluster: from a caller's span to the container, and from a command's output to a
file."""

from __future__ import annotations

import contextvars
import itertools
import json
import re
import secrets
import time
from urllib.parse import urlsplit

import pytest

import shoal
from shoal.client import config_file
from shoal.model import call_context
from shoal.transport.http_server import normal_url
from tests.cluster import Cluster
from tests.otlp import receiver

pytestmark = pytest.mark.engine


def test_a_callers_trace_reaches_the_container_and_output_reaches_the_sink(cluster: Cluster) -> None:
    telemetry = cluster.machine.settings.telemetry
    assert telemetry.traces is not None
    assert telemetry.sink is not None
    trace_id = secrets.token_hex(16)

    url = normal_url(cluster.file.api_url)
    client = shoal.connect(url, token=config_file.read().servers[url].token)

    def create() -> shoal.Sandbox:
        call_context.begin_request("rq-trace", f"00-{trace_id}-{'b' * 16}-01")
        # A shape of its own: what is kept ready has started its container long before.
        return shoal.Sandbox.create("sh", "-c", "echo one; echo two >&2; printf three", pids=311, client=client)

    with receiver(urlsplit(telemetry.traces).port or 0) as seen:
        sandbox = contextvars.copy_context().run(create)
        serve = "POST /v1/sandboxes"
        wanted = {"POST", serve, "create", "start", "start_container", "image", "container", "agent", "command"}
        seen.until(lambda: wanted <= {span.name for span in seen.spans if span.trace_id == trace_id})
        spans = {span.name: span for span in seen.spans if span.trace_id == trace_id}
    services = {name: span.service.removeprefix("shoal-") for name, span in spans.items()}
    told = {name: services[name] for name in ("POST", serve, "create", "agent", "container")}
    assert told == {"POST": "gateway", serve: "api", "create": "controller", "agent": "controller", "container": "node"}
    assert spans["POST"].parent_id == "b" * 16
    line = ["POST", serve, "create", "start", "start_container", "container"]
    for parent, child in itertools.pairwise(line):
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


def test_every_process_writes_its_log_as_the_setting_says(cluster: Cluster) -> None:
    """Whatever this session's tests have made them say so far."""
    logs = cluster.machine.state_dir / "ray" / "s" / "session_latest" / "logs"
    files = [
        *logs.glob("worker-*.err"),
        *logs.glob("serve/replica*.log"),
        *(cluster.machine.state_dir / "node").glob("*.log"),
    ]
    components = set()
    for file in files:
        for line in file.read_text("utf-8", "replace").splitlines():
            if line.startswith("{"):
                components.add(json.loads(line).get("component"))
            else:
                assert not re.search(r"\b(shoal\.[a-z]+|gateway:|relay:)", line.partition(" File ")[0]), line
    assert "api" in components, files
