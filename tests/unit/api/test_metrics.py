"""What a replica counts and reports, health, and figures for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shoal.cluster.api import health
from shoal.cluster.api.access.usage_reporter import BUCKETS_S, UsageReporter
from shoal.cluster.api.request.context import RequestContext
from shoal.model import verbs
from shoal.model.access import AuditEntry, Caller, Scope
from shoal.model.errors import Unavailable
from shoal.model.metrics import Series
from shoal.model.verbs import Verb
from tests.api import Api


class Side:
    """A controller that takes reports, or does not."""

    def __init__(self) -> None:
        self.away = False
        self.entries: list[AuditEntry] = []
        self.counters: dict[str, float] = {}
        self.used: dict[str, float] = {}

    async def ask(self, verb: Verb[..., Any], *args: Any) -> None:
        assert verb is verbs.report
        await self.report(*args)

    async def report(
        self, audit: Sequence[AuditEntry], counters: Mapping[Series, float], used: Mapping[str, float]
    ) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("away")
        self.entries += audit
        for series, amount in counters.items():
            name = ",".join((series.name, *(value for _, value in series.labels)))
            self.counters[name] = self.counters.get(name, 0) + amount
        self.used.update(used)


def context(target: int) -> RequestContext:
    return RequestContext("r", caller=Caller("tk-a", "main", Scope.RUN), action="exec", target=str(target))


@pytest.mark.anyio
class TestUsageReporter:
    async def test_what_was_not_taken_is_said_again_once(self) -> None:
        side: Any = Side()
        reporter = UsageReporter(side)
        reporter.note(context(1))
        reporter.add("shoal_execs_total", 2)
        reporter.answered("GET", "/v1/x", 200, 0.003)
        reporter.used["tk-a"] = 1.0
        side.away = True
        assert not await reporter.try_flush()
        reporter.note(context(2))
        reporter.add("shoal_execs_total", 1)
        reporter.answered("GET", "/v1/x", 200, 40.0)
        reporter.used["tk-a"] = 2.0
        side.away = False
        assert await reporter.try_flush()
        assert await reporter.try_flush()
        assert [entry.target for entry in side.entries] == ["1", "2"]
        assert side.used == {"tk-a": 2.0}
        assert side.counters["shoal_execs_total"] == 3
        assert side.counters["shoal_http_requests_total,GET,/v1/x,200"] == 2
        assert side.counters["shoal_http_request_seconds_bucket,0.0025"] == 0
        assert side.counters["shoal_http_request_seconds_bucket,0.005"] == 1
        assert side.counters["shoal_http_request_seconds_bucket,+Inf"] == 2
        assert side.counters["shoal_http_request_seconds_sum"] == pytest.approx(40.003)

    async def test_it_is_bounded_and_the_oldest_give_way(self) -> None:
        side: Any = Side()
        reporter = UsageReporter(side, most_entries=10)
        side.away = True
        for number in range(12):
            reporter.note(context(number))
        assert not await reporter.try_flush()
        for number in range(12, 15):
            reporter.note(context(number))
        side.away = False
        assert await reporter.try_flush()
        assert [entry.target for entry in side.entries] == [str(number) for number in range(5, 15)]
        assert side.counters["shoal_audit_dropped_total"] == 5

    async def test_many_go_in_several_reports(self) -> None:
        side: Any = Side()
        reporter = UsageReporter(side)
        for number in range(2500):
            reporter.note(context(number))
        await reporter.flush()
        assert len(side.entries) == 2500

    async def test_what_happens_during_a_report_is_for_the_next_one(self) -> None:
        class Busy(Side):
            """Requests end during each report."""

            reports = 0

            async def report(
                self, audit: Sequence[AuditEntry], counters: Mapping[Series, float], used: Mapping[str, float]
            ) -> None:
                await super().report(audit, counters, used)
                self.reports += 1
                for number in range(3):
                    reporter.note(context(number))
                reporter.answered("GET", "/v1/x", 200, 0.001)
                reporter.used["tk-a"] = 1.0

        side: Any = Busy()
        reporter = UsageReporter(side)
        reporter.answered("GET", "/v1/x", 200, 0.001)
        async with asyncio.timeout(20):  # a machine may stand still for seconds
            await reporter.flush()
        assert side.reports == 1
        await reporter.flush()
        assert (side.reports, len(side.entries), side.used) == (2, 3, {"tk-a": 1.0})


def test_the_end_of_a_replica_reports_what_is_left() -> None:
    from tests.api import serving

    with serving() as api:
        made = api.sandbox()
        fake = api.fake
    assert [entry.target for entry in fake.disk.audit if entry.action == "sandbox.create"] == [made["id"]]
    assert fake.disk.tokens[api.root.split("_")[1]].info.last_used_at is not None


class TestHealth:
    def test_neither_asks_for_a_token(self, api: Api) -> None:
        for path in ("/v1/health", "/v1/ready"):
            assert api.ask("GET", path, token=None).json["status"] == "ok"

    def test_it_is_not_ready_while_the_controller_is_away(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(health, "_FRESH_S", 0.0)
        api.fake.fail_next("last_event", Unavailable("it restarts"))
        got = api.ask("GET", "/v1/ready", token=None)
        assert (got.status, got.json["code"]) == (503, "unavailable")
        assert api.ask("GET", "/v1/ready", token=None).status == 200

    def test_a_controller_that_is_silent_is_away(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        ask = api.fake.ask

        async def silent(verb: Any, /, *args: Any, **options: Any) -> Any:
            if verb is verbs.last_event:
                await asyncio.Event().wait()
            return await ask(verb, *args, **options)

        monkeypatch.setattr(health, "READY_S", 0.05)
        monkeypatch.setattr(api.fake, "ask", silent)
        assert api.ask("GET", "/v1/ready", token=None).status == 503
        assert api.ask("GET", "/v1/health", token=None).status == 200

    def test_asking_often_asks_the_controller_once(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(health, "_FRESH_S", 60.0)
        for _ in range(20):
            api.ask("GET", "/v1/ready", token=None)
        assert len(api.fake.named("last_event")) == 1


class TestMetrics:
    def test_they_hold_what_replicas_counted(self, api: Api) -> None:
        made = api.sandbox()
        api.ask("POST", f"/v1/sandboxes/{made['id']}/exec", {"argv": ["true"]})
        got = api.ask("GET", "/metrics")
        assert got.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        families = {family.name: family for family in text_string_to_metric_families(got.body.decode())}
        assert {
            name: families[name].type for name in ("shoal_execs", "shoal_http_request_seconds", "shoal_node_up")
        } == {
            "shoal_execs": "counter",
            "shoal_http_request_seconds": "histogram",
            "shoal_node_up": "gauge",
        }
        assert [sample.value for sample in families["shoal_execs"].samples] == [1]
        labels = {"method": "POST", "route": "/v1/sandboxes", "status": "201"}
        assert [s.value for s in families["shoal_http_requests"].samples if s.labels == labels] == [1]
        bounds = [s.labels["le"] for s in families["shoal_http_request_seconds"].samples if "le" in s.labels]
        assert bounds == [*(str(bound) for bound in BUCKETS_S), "+Inf"]
