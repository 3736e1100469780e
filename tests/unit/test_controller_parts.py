"""The controller's parts that need no Ray: records, registry, placement."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import pytest

from shoal.actors.controller import registry as registry_module
from shoal.actors.controller.machine import Machine, check_fits
from shoal.actors.controller.phase import Phase
from shoal.actors.controller.record import Exposure, SandboxRecord, from_row, to_row
from shoal.actors.controller.registry import Registry
from shoal.actors.messages import End, SandboxStarted
from shoal.model.errors import AlreadyExists, InvalidRequest, Unavailable
from shoal.model.info import Listing
from shoal.model.states import RETURNCODES, Reason, State
from tests.unit.builders import resources, spec


def record(sandbox_id: str, **changes: object) -> SandboxRecord:
    wanted = spec(**changes)
    return SandboxRecord(sandbox_id, wanted, time.time(), dict(wanted.tags))


def running(sandbox_id: str, **changes: object) -> SandboxRecord:
    made = record(sandbox_id, **changes)
    made.life.phase = Phase.RUNNING
    made.slot_id = "slot-1"
    made.started = SandboxStarted("c-1", "node", "127.0.0.1:1", 2.0, warm=False)
    return made


def ended(made: SandboxRecord, at: float = 3.0, reason: Reason = Reason.TERMINATED) -> SandboxRecord:
    made.life.phase = Phase.CLOSED
    made.finish(End(reason, 0, "why", at))
    return made


class TestRecord:
    def test_survives_the_disk(self) -> None:
        made = ended(running("sb-1", command=("a", "b"), env={"K": "v"}, name="n", idle_timeout=3.5))
        made.deadline, made.created_by, made.ended_by = 7.0, "tk-1", "tk-2"
        made.tunnels = {
            80: Exposure(80, "tcp", public=True, address="127.0.0.1:4"),
            90: Exposure(90, "http", public=False),
        }
        copy = from_row(json.loads(json.dumps(to_row(made))))
        assert copy.info == made.info
        assert to_row(copy) == to_row(made)
        assert copy.spec == made.spec
        assert copy.life == made.life
        assert copy.tunnels == made.tunnels

    def test_rows_of_before_there_were_tokens_are_read(self) -> None:
        row = to_row(running("sb-1"))
        for later in ("deadline", "created_by", "ended_by", "tunnels"):
            del row[later]
        assert from_row(row).created_by == "cluster"

    def test_rows_of_before_there_were_phases_are_read(self) -> None:
        old = {"history": [[1.0, "place", "starting"], [2.0, "ready", "running"]], "released": False}
        for made in (record("sb-1"), running("sb-2"), ended(running("sb-3"))):
            copy = from_row({**to_row(made), **old})
            assert (copy.state, copy.ended) == (made.state, made.ended)

    @pytest.mark.parametrize("reason", list(Reason))
    def test_every_end_has_a_number(self, reason: Reason) -> None:
        assert End(reason, 3, "", 0.0).returncode == 3
        returncode = End(reason, None, "", 0.0).returncode
        assert returncode == RETURNCODES[reason] != 0

    @pytest.mark.parametrize("reason", list(Reason))
    def test_every_reason_ends_every_stage(self, reason: Reason) -> None:
        for made in (record("sb-1"), running("sb-2")):
            ended(made, reason=reason)
            assert made.ended
            assert made.info.reason is reason
        assert ended(running("sb-3"), reason=Reason.EVICTED).state is State.FAILED
        assert ended(running("sb-4"), reason=Reason.TIMEOUT).state is State.TERMINATED

    def test_what_only_its_life_needed_is_let_go_of_at_its_end(self) -> None:
        asked = spec(command=("sh", "-c", "x" * 100_000, "y"), env={"KEY": "hunter2"}, tags={"a": "b"})
        living = running("sb-1", command=asked.command, env=asked.env, tags=asked.tags)
        assert to_row(living)["spec"]["env"] == {"KEY": "hunter2"}
        made = from_row(json.loads(json.dumps(to_row(ended(living)))))
        for one in (living, made):
            row = json.dumps(to_row(one))
            assert "hunter2" not in row
            assert len(row) < 6000
            assert one.weight < 20_000
            assert one.info.spec.env == {}
            assert one.info.spec.command[:2] == ("sh", "-c")
            assert one.info.spec.command[2].startswith("xxx")
            assert one.asked_for(asked)
            for other in ({"env": {"KEY": "other"}}, {"command": asked.command[:3]}, {"tags": {}}, {"user": "root"}):
                assert not one.asked_for(replace(asked, **other))
        short = ended(running("sb-2", command=("sleep", "60")))
        assert short.info.spec.command == ("sleep", "60")

    def test_an_end_that_an_earlier_version_wrote_in_full_is_shortened_when_it_is_read(self) -> None:
        asked = spec(command=("a", "b"), env={"KEY": "hunter2"}, timeout=60)
        row = to_row(ended(running("sb-1", command=asked.command, timeout=60)))
        del row["digest"]
        row["spec"] |= {"env": {"KEY": "hunter2"}}
        made = from_row(json.loads(json.dumps(row)))
        assert made.spec.env == {}
        assert made.asked_for(asked)
        assert made.asked_for(replace(asked, timeout=60.0)), "the same number"


class Unseen(OrderedDict[str, SandboxRecord]):
    """What has ended, where nobody may go through it all."""

    def values(self) -> Any:
        raise AssertionError("it goes through all that has ended")

    items = __iter__ = __reversed__ = values


class TestRegistry:
    def test_a_name_is_unique_among_the_living_of_an_environment(self) -> None:
        registry = Registry(10)
        first = running("sb-1", name="web")
        registry.add(first)
        with pytest.raises(AlreadyExists) as caught:
            registry.add(record("sb-2", name="web"))
        assert caught.value.fields["field"] == "name"
        registry.add(record("sb-3", name="web", environment="dev"))
        registry.settle(ended(first))
        assert registry.find("web", "main") is first, "its end is still found by name"
        registry.add(latest := record("sb-4", name="web"))
        assert registry.find("web", "main") is latest

    def test_the_same_key_gives_the_same_sandbox_and_only_for_the_same_request(self) -> None:
        registry = Registry(10)
        first = record("sb-1", idempotency_key="k")
        registry.add(first)
        assert registry.same_request(spec(idempotency_key="k")) is first
        assert registry.same_request(spec(idempotency_key="other")) is None
        assert registry.same_request(spec(idempotency_key="k", environment="dev")) is None
        with pytest.raises(InvalidRequest) as caught:
            registry.same_request(spec(idempotency_key="k", user="root"))
        assert caught.value.field == "idempotency_key"
        registry.settle(ended(first, reason=Reason.START_FAILED))
        assert registry.same_request(spec(idempotency_key="k")) is None

    def test_lists_by_tags_and_states(self) -> None:
        registry = Registry(10)
        for number in range(4):
            registry.add(running(f"sb-{number}", tags={"even": str(number % 2 == 0), "all": "x"}))
        first = registry.get("sb-0")
        assert first is not None
        registry.settle(ended(first))
        listed = registry.select(Listing(tags={"even": "True", "all": "x"}))
        assert [r.id for r in listed] == ["sb-2"]
        assert {r.id for r in registry.select(Listing(include_ended=True))} == {"sb-0", "sb-1", "sb-2", "sb-3"}
        assert [r.id for r in registry.select(Listing(states=(State.TERMINATED,)))] == ["sb-0"]
        assert len(registry.select(Listing(limit=2))) == 2

    def test_pages_follow_one_another_without_gap_or_repeat(self) -> None:
        registry = Registry(10)
        for number in range(7):
            made = running(f"sb-{number}")
            made.created_at = float(number // 2)  # some at the same moment
            registry.add(made)
        seen: list[str] = []
        before = None
        while page := registry.select(Listing(limit=2, before=before)):
            seen += [r.id for r in page]
            before = (page[-1].created_at, page[-1].id)
        assert seen == ["sb-6", "sb-5", "sb-4", "sb-3", "sb-2", "sb-1", "sb-0"]

    def test_lists_by_region(self) -> None:
        registry = Registry(10)
        registry.add(running("sb-1", regions=("eu",)))
        registry.add(running("sb-2"))
        assert [r.id for r in registry.select(Listing(region="eu"))] == ["sb-1"]

    def test_forgets_the_oldest_beyond_its_history(self) -> None:
        registry = Registry(2)
        for number in range(4):
            made = running(f"sb-{number}", name=f"n{number}", idempotency_key=f"k{number}")
            registry.add(made)
            assert registry.complete == (number < 3)
            registry.settle(ended(made))
        assert not registry.complete
        assert registry.get("sb-0") is None
        assert registry.find("n1", "main") is None
        assert registry.keyed("main", "k1") is None
        found = registry.get("sb-2")
        assert found is not None
        assert found.ended

    def test_forgets_the_oldest_beyond_what_they_may_weigh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registry_module, "HISTORY_BYTES", 100_000)
        registry = Registry(1000)
        past = [ended(running(f"sb-{number:03}", tags={"a": "x" * 10_000})) for number in range(50)]
        for made in past:
            registry.add(made)
            registry.settle(made)
        kept = [made for made in past if registry.get(made.id) is not None]
        assert kept == past[-len(kept) :]
        assert 2 <= len(kept) <= 10
        assert not registry.complete
        again = Registry(1000)
        again.restore(past)
        assert [made for made in past if again.get(made.id) is not None] == kept
        assert not again.complete
        registry.expire(before=1e12)
        registry.restore(past[:1])
        assert registry.get("sb-000") is not None, "what is forgotten weighs nothing"

    def test_lists_the_newest_first_whatever_the_clock_did(self) -> None:
        registry = Registry(100)
        times = [5.0, 7.0, 7.0, 6.0, 1.0, 8.0, 2.0]  # it was set back twice
        made = [replace(running(f"sb-{number}"), created_at=at) for number, at in enumerate(times)]
        for each in made:
            registry.add(each)
        for each in made[::2]:
            registry.settle(ended(each))
        registry.retract(made[1])
        wanted = sorted((each for each in made if each is not made[1]), key=registry_module.position, reverse=True)
        everything = Listing(environment="main", include_ended=True, limit=3)
        first = registry.select(everything)
        rest = registry.select(replace(everything, before=registry_module.position(first[-1]), limit=10))
        assert first + rest == wanted
        assert registry.select(Listing(environment="main", limit=10)) == [each for each in wanted if not each.ended]

    def test_expires_by_age(self) -> None:
        registry = Registry(10)
        for number in range(3):
            made = running(f"sb-{number}")
            registry.add(made)
            registry.settle(ended(made, at=float(number)))
        assert registry.expire(before=1.5) == ["sb-0", "sb-1"]

    def test_counts_what_lives(self) -> None:
        registry = Registry(10)
        made = running("sb-1", resources=resources(cpu_limit=0.1, memory_limit=300))
        registry.add(made)
        registry.add(running("sb-2", environment="dev"))
        usage = registry.usage("main")
        assert (usage.sandboxes, usage.cpu, usage.memory) == (1, 0.1, 300)
        registry.settle(ended(made))
        registry.settle(made)
        assert (usage.sandboxes, usage.cpu, usage.memory) == (0, 0.0, 0)

    def test_what_could_not_be_put_on_record_never_was(self) -> None:
        registry = Registry(10)
        made = record("sb-1", name="n", idempotency_key="k")
        registry.add(made)
        registry.retract(made)
        assert registry.get("sb-1") is None
        assert registry.same_request(made.spec) is None
        assert registry.usage("main").sandboxes == 0
        registry.add(record("sb-2", name="n", idempotency_key="k"))

    def test_what_could_not_be_put_on_record_takes_nobody_s_name(self) -> None:
        registry = Registry(10)
        for number in range(2):
            registry.add(had_it := running(f"sb-{number}", name="n"))
            registry.settle(ended(had_it))
        registry.add(refused := record("sb-2", name="n"))
        registry.retract(refused)
        assert registry.find("n", "main") is had_it, "the last that had it"

    def test_a_name_goes_back_to_nobody_who_is_forgotten(self) -> None:
        registry = Registry(1)
        registry.add(had_it := running("sb-0", name="n"))
        registry.settle(ended(had_it))
        registry.add(refused := record("sb-1", name="n"))
        registry.add(other := running("sb-2"))
        registry.settle(ended(other))
        registry.retract(refused)
        assert registry.find("n", "main") is None
        assert not registry._names

    def test_what_is_refused_is_taken_back_without_a_look_at_the_past(self) -> None:
        registry = Registry(10)
        registry.add(had_it := running("sb-0", name="n"))
        registry.settle(ended(had_it))
        registry._ended = Unseen(registry._ended)
        registry.add(refused := record("sb-1", name="n"))
        registry.retract(refused)
        assert registry.find("n", "main") is had_it

    def test_a_restart_brings_back_names_keys_and_use(self) -> None:
        registry = Registry(10)
        failed = record("sb-0", idempotency_key="again")
        registry.restore(
            [
                ended(failed, reason=Reason.IMAGE_ERROR),
                running("sb-1", name="n", idempotency_key="k"),
                ended(running("sb-2", name="n")),
            ]
        )
        assert registry.keyed("main", "again") is None, "its create failed, so it may be tried again"
        found = registry.find("n", "main")
        assert found is not None
        assert found.id == "sb-1", "the living one has the name"
        assert registry.same_request(spec(name="n", idempotency_key="k")) is found
        assert registry.usage("main").sandboxes == 1


class TestPlacement:
    small = Machine(2.0, 4096, 2.0, 3000, 0, None, ("runc",), 24576, disk=100_000)
    large = Machine(8.0, 32768, 16.0, 20000, 1, "eu", ("runc", "runsc"), 24576, disk=2_000_000)

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"resources": resources(cpu_limit=9.0)}, "cpu"),
            ({"resources": resources(cpu_request=17.0, cpu_limit=17.0)}, "cpu"),
            ({"resources": resources(memory_limit=40000)}, "memory"),
            ({"resources": resources(memory_request=30000, memory_limit=30000)}, "memory"),
            ({"resources": resources(gpu=2)}, "gpu"),
            ({"regions": ("moon",)}, "region"),
            ({"resources": resources(pids=24577)}, "pids"),
            ({"resources": resources(disk=2_000_001)}, "disk"),
        ],
    )
    def test_refuses_what_no_machine_has(self, changes: dict[str, object], field: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            check_fits(spec(**changes), [self.small, self.large])
        assert caught.value.field == field

    def test_one_machine_must_meet_all_of_it(self) -> None:
        check_fits(spec(runtime="runsc", regions=("eu",)), [self.small, self.large])
        other = Machine(64.0, 4096, 64.0, 3000, 0, "us", ("runc",), 24576)
        with pytest.raises(InvalidRequest) as caught:
            check_fits(spec(regions=("eu",), resources=resources(cpu_limit=32.0)), [self.large, other])
        assert caught.value.field == "cpu"

    def test_a_zone_of_another_region_is_told_with_those_that_are_there(self) -> None:
        there, elsewhere = replace(self.large, zone="eu-a"), replace(self.large, region="us", zone="us-a")
        with pytest.raises(InvalidRequest, match=r"zones there: eu-a$") as caught:
            check_fits(spec(regions=("eu",), zone="us-a"), [there, elsewhere])
        assert caught.value.field == "zone"

    def test_no_node_at_all_is_a_matter_of_time(self) -> None:
        with pytest.raises(Unavailable):
            check_fits(spec(), [])
