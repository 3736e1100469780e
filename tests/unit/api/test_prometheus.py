"""What comes for Prometheus: metrics in its format, and files that speak of metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

import shoal.configs
from shoal.model.metrics import Series, exposition, flatten
from tests.api import Api
from tests.unpacked import program

CONFIGS = Path(shoal.configs.__file__).parent
_NAME = re.compile(r"\bshoal_[a-z_]+\b")
_SUFFIX = re.compile(r"_(bucket|sum|count)$")
_WHEN_THEY_HAPPEN = {
    "shoal_task_failures_total",
    "shoal_waiting_sandboxes",
    "shoal_audit_dropped_total",
    "shoal_pool_takes_total",
    "shoal_shipping_spool_bytes",
    "shoal_shipping_dropped_total",
    "shoal_shipping_lost_bytes_total",
}
"""Of which a quiet cluster has no series."""


def told(api: Api) -> bytes:
    made = api.sandbox()
    api.ask("POST", f"/v1/sandboxes/{made['id']}/exec", {"argv": ["true"]})
    api.ask("DELETE", f"/v1/sandboxes/{made['id']}")
    api.sandbox()
    return api.ask("GET", "/metrics").body


def test_any_label_is_told_as_it_is() -> None:
    registry = CollectorRegistry()
    hostile = 'a"b\\c\nd{} ü\u202e'
    Counter("shoal_x", 'About "x"\nand \\', ["label"], registry=registry).labels(hostile).inc(2)
    Histogram("shoal_y_seconds", "y", registry=registry).observe(0.3)
    text = exposition({**flatten(registry), Series("shoal_z", "gauge", "z", "shoal_z"): float("inf")}).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {name: family.type for name, family in families.items()} == {
        "shoal_x": "counter",
        "shoal_y_seconds": "histogram",
        "shoal_z": "gauge",
    }
    [sample] = families["shoal_x"].samples
    assert (sample.labels, sample.value) == ({"label": hostile}, 2.0)
    assert families["shoal_z"].samples[0].value == float("inf")


def test_alerts_and_dashboard_speak_of_metrics_that_there_are(api: Api) -> None:
    families = list(text_string_to_metric_families(told(api).decode()))
    known = {sample.name for family in families for sample in family.samples} | _WHEN_THEY_HAPPEN
    rules = yaml.safe_load((CONFIGS / "prometheus-alerts.yaml").read_text())
    board = json.loads((CONFIGS / "grafana-dashboard.json").read_text())
    texts = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    texts += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    texts += [each["query"] for each in board["templating"]["list"]]
    used = {name for text in texts for name in _NAME.findall(text)}
    assert len(used) > 20
    assert used <= known
    assert yaml.safe_load((CONFIGS / "prometheus.yaml").read_text())["rule_files"] == ["prometheus-alerts.yaml"]


def test_thousands_of_series_are_written_in_milliseconds() -> None:
    values = {
        Series("shoal_http_requests", "counter", "x", "shoal_http_requests_total", (("route", f"/v1/{n}"),)): 1.0
        for n in range(3000)
    }
    began = time.process_time()
    exposition(values)
    assert time.process_time() - began < 0.1  # 4 ms where nothing else runs


@pytest.mark.long
def test_promtool_takes_all_of_it(api: Api, tmp_path: Path) -> None:
    promtool = program("prometheus", "usr/bin/promtool")
    token = tmp_path / "token"
    token.write_text("x")
    text = (CONFIGS / "prometheus.yaml").read_text().replace("/etc/prometheus/shoal-token", str(token))
    (tmp_path / "prometheus.yaml").write_text(text)
    (tmp_path / "prometheus-alerts.yaml").write_text((CONFIGS / "prometheus-alerts.yaml").read_text())
    for what, file, given in (
        ("config", str(tmp_path / "prometheus.yaml"), None),
        ("rules", str(tmp_path / "prometheus-alerts.yaml"), None),
        ("metrics", None, told(api)),
    ):
        command = [str(promtool), "check", what, *([] if file is None else [file])]
        done = subprocess.run(command, input=given, capture_output=True, timeout=60)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
