"""The controller's parts that need no Ray: records, registry, journal, placement."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from shoal.actors.controller.journal import Journal
from shoal.actors.controller.placement import Machine, check_fits
from shoal.actors.controller.record import SandboxRecord, from_row, to_row
from shoal.actors.controller.registry import Registry
from shoal.actors.messages import Began, End
from shoal.model.errors import AlreadyExists, InvalidRequest, SandboxNotFound, Unavailable
from shoal.model.info import Listing
from shoal.model.states import Event, Reason, State
from tests.unit.builders import resources, spec


def record(sandbox_id: str, **changes: object) -> SandboxRecord:
    wanted = spec(**changes)
    return SandboxRecord(sandbox_id, wanted, time.time(), dict(wanted.tags))


def running(sandbox_id: str, **changes: object) -> SandboxRecord:
    made = record(sandbox_id, **changes)
    made.life.apply(Event.PLACE, 1.0)
    made.life.apply(Event.READY, 2.0)
    made.slot_id = "slot-1"
    made.began = Began("c-1", "node", "127.0.0.1:1", 2.0, warm=False)
    return made


def ended(made: SandboxRecord, at: float = 3.0, reason: Reason = Reason.TERMINATED) -> SandboxRecord:
    made.finish(End(reason, 0, "why", at), at)
    return made


class TestRecord:
    def test_survives_the_disk(self) -> None:
        made = ended(running("sb-1", command=("a", "b"), env={"K": "v"}, name="n", idle_timeout=3.5))
        copy = from_row(to_row(made))
        assert copy.info == made.info
        assert copy.spec == made.spec
        assert copy.life == made.life
        assert copy.settled.is_set()

    @pytest.mark.parametrize("reason", list(Reason))
    def test_every_reason_ends_every_stage(self, reason: Reason) -> None:
        for made in (record("sb-1"), running("sb-2")):
            ended(made, reason=reason)
            assert made.ended
            assert made.info.reason is reason
        assert ended(running("sb-3"), reason=Reason.EVICTED).life.state is State.FAILED
        assert ended(running("sb-4"), reason=Reason.TIMEOUT).life.state is State.TERMINATED

    def test_the_first_end_counts(self) -> None:
        made = ended(running("sb-1"), reason=Reason.OUT_OF_MEMORY)
        ended(made, reason=Reason.TERMINATED)
        assert made.info.reason is Reason.OUT_OF_MEMORY


class TestRegistry:
    def test_a_name_is_unique_among_the_living_of_an_environment(self) -> None:
        registry = Registry(10)
        first = running("sb-1", name="web")
        registry.add(first)
        with pytest.raises(AlreadyExists, match=r"name: 'web' is taken by sb-1") as caught:
            registry.add(record("sb-2", name="web"))
        assert caught.value.fields["field"] == "name"
        registry.add(record("sb-3", name="web", environment="dev"))
        registry.settle(ended(first))
        assert registry.find("web", "main").id == "sb-1", "its end is still found by name"
        registry.add(record("sb-4", name="web"))
        assert registry.find("web", "main").id == "sb-4"

    def test_the_same_key_gives_the_same_sandbox_and_only_for_the_same_request(self) -> None:
        registry = Registry(10)
        first = record("sb-1", idempotency_key="k")
        registry.add(first)
        assert registry.same_request(spec(idempotency_key="k")) is first
        assert registry.same_request(spec(idempotency_key="other")) is None
        assert registry.same_request(spec(idempotency_key="k", environment="dev")) is None
        with pytest.raises(InvalidRequest, match="idempotency_key"):
            registry.same_request(spec(idempotency_key="k", user="root"))
        registry.release_key(first)
        assert registry.same_request(spec(idempotency_key="k")) is None

    def test_lists_by_tags_and_states(self) -> None:
        registry = Registry(10)
        for number in range(4):
            registry.add(running(f"sb-{number}", tags={"even": str(number % 2 == 0), "all": "x"}))
        registry.settle(ended(registry.get("sb-0")))
        listed = registry.select(Listing(tags={"even": "True", "all": "x"}))
        assert [r.id for r in listed] == ["sb-2"]
        assert {r.id for r in registry.select(Listing(include_ended=True))} == {"sb-0", "sb-1", "sb-2", "sb-3"}
        assert [r.id for r in registry.select(Listing(states=(State.TERMINATED,)))] == ["sb-0"]
        assert len(registry.select(Listing(limit=2))) == 2

    def test_forgets_the_oldest_beyond_its_history(self) -> None:
        registry = Registry(2)
        forgotten = []
        for number in range(4):
            made = running(f"sb-{number}", name=f"n{number}")
            registry.add(made)
            forgotten += registry.settle(ended(made))
        assert forgotten == ["sb-0", "sb-1"]
        with pytest.raises(SandboxNotFound):
            registry.get("sb-0")
        with pytest.raises(SandboxNotFound):
            registry.find("n1", "main")
        assert registry.get("sb-2").ended

    def test_expires_by_age(self) -> None:
        registry = Registry(10)
        for number in range(3):
            made = running(f"sb-{number}")
            registry.add(made)
            registry.settle(ended(made, at=float(number)))
        assert registry.expire(before=1.5, keep=0) == ["sb-0", "sb-1"]


class TestJournal:
    pytestmark = pytest.mark.anyio

    async def test_keeps_what_was_put_in_order_and_as_it_was_last(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path / "x" / "j.sqlite")
        assert await journal.open() == []
        for number in range(20):
            made = record(f"sb-{number}")
            made.created_at = float(number)
            await journal.put(made)
        last = running("sb-7")
        last.created_at = 7.0
        await journal.put(last)
        await journal.drop(["sb-3"])
        await journal.close()

        again = Journal(tmp_path / "x" / "j.sqlite")
        back = await again.open()
        assert [r.id for r in back] == [f"sb-{n}" for n in range(20) if n != 3]
        assert back[6].info == last.info
        await again.close()

    async def test_concurrent_puts_are_all_on_disk_when_they_return(self, tmp_path: Path) -> None:
        import asyncio
        import sqlite3

        journal = Journal(tmp_path / "j.sqlite")
        await journal.open()

        async def put(number: int) -> None:
            await journal.put(record(f"sb-{number}"))
            with sqlite3.connect(tmp_path / "j.sqlite") as other:
                assert other.execute("SELECT 1 FROM sandboxes WHERE id = ?", (f"sb-{number}",)).fetchone()

        await asyncio.gather(*(put(n) for n in range(50)))
        await journal.close()


class TestPlacement:
    small = Machine(2.0, 4096, 2.0, 3000, 0, None, ("runc",))
    large = Machine(8.0, 32768, 16.0, 20000, 1, "eu", ("runc", "runsc"))

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"resources": resources(cpu_limit=9.0)}, "cpu"),
            ({"resources": resources(cpu_request=17.0, cpu_limit=17.0)}, "cpu"),
            ({"resources": resources(memory_limit=40000)}, "memory"),
            ({"resources": resources(memory_request=30000, memory_limit=30000)}, "memory"),
            ({"resources": resources(gpu=2)}, "gpu"),
            ({"region": "moon"}, "region"),
        ],
    )
    def test_refuses_what_no_machine_has(self, changes: dict[str, object], field: str) -> None:
        with pytest.raises(InvalidRequest, match="no node can meet it") as caught:
            check_fits(spec(**changes), [self.small, self.large])
        assert caught.value.field == field

    def test_one_machine_must_meet_all_of_it(self) -> None:
        check_fits(spec(runtime="runsc", region="eu"), [self.small, self.large])
        other = Machine(64.0, 4096, 64.0, 3000, 0, "us", ("runc",))
        with pytest.raises(InvalidRequest) as caught:
            check_fits(spec(region="eu", resources=resources(cpu_limit=32.0)), [self.large, other])
        assert caught.value.field == "cpu"

    def test_no_node_at_all_is_a_matter_of_time(self) -> None:
        with pytest.raises(Unavailable):
            check_fits(spec(), [])
