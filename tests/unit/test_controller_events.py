"""Events: in order, without gaps for those who follow, and cheap to wait for."""

from __future__ import annotations

import asyncio
import time

import pytest

from shoal.actors.controller import events as events_module
from shoal.actors.controller.events import EventLog
from shoal.model.access import INSIDE, Quota, SandboxEvent
from tests.unit.builders import spec
from tests.unit.controller_world import World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]  # a machine may stand still for seconds


def draft(log: EventLog, sandbox_id: str = "sb-1", environment: str = "main") -> SandboxEvent:
    return log.draft(1.0, environment, sandbox_id, "created", {})


def test_what_is_written_out_of_order_is_told_in_order() -> None:
    log = EventLog(7)
    first, second, third = draft(log), draft(log), draft(log)
    assert [first.id, second.id, third.id] == [8, 9, 10]
    log.publish([third])
    assert log.since(7) == []
    log.drop([second])
    assert (log.since(7), log.last) == ([], 7)
    log.publish([first])
    assert log.since(7) == [first, third]
    assert log.since(8) == [third]
    assert log.last == 10


def test_memory_says_where_it_ends() -> None:
    log = EventLog(0, size=3)
    events = [draft(log) for _ in range(5)]
    log.publish(events)
    assert log.since(1) is None
    assert log.since(2) == events[2:]
    assert EventLog(100).since(99) is None


def test_memory_is_bounded_by_what_events_say_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "RING_BYTES", 10_000)
    log = EventLog(0)
    events = [log.draft(1.0, "main", "sb-1", "tags", {"tags": {"a": f"{n}" * 1000}, "token": None}) for n in range(50)]
    log.publish(events)
    kept = next(n for n in range(51) if log.since(n) is not None)
    assert 40 <= kept < 49
    assert log.since(kept) == events[kept:]
    log.publish([draft(log) for _ in range(30)])
    assert log.since(49) is not None, "small ones take little"


def test_what_the_store_forgets_memory_forgets_too() -> None:
    log = EventLog(0)
    events = [log.draft(float(n), "main", "sb-1", "created", {}) for n in range(5)]
    log.publish(events)
    log.expire(3.0)
    assert log.since(2) is None
    assert log.since(3) == events[3:]
    log.expire(100.0)
    assert (log.since(5), log.last) == ([], 5)


async def test_events_expire_with_the_rest() -> None:
    world = World(settings={"store": {"retention": 1e-6}})
    controller = await world.controller()
    made, _ = await controller.begin(controller.parts.sandboxes.create(spec(), 30, True, INSIDE))
    await controller.begin(controller.parts.sandboxes.terminate(made.id, INSIDE))
    await controller.parts.sandboxes.wait(made.id, 20, INSIDE)  # until its end is on record
    log = controller.parts.writer.events
    assert log.since(0)
    await controller.parts._expire()
    assert log.since(0) is None
    assert (world.disk.events, world.disk.sandboxes) == ([], {})
    assert controller.parts.registry.get(made.id) is None
    await controller.kill()


def test_filters_and_bounds() -> None:
    log = EventLog(0)
    events = [draft(log, f"sb-{n % 2}", "dev" if n % 3 == 0 else "main") for n in range(12)]
    log.publish(events)
    assert log.since(0, sandbox_id="sb-1") == events[1::2]
    assert log.since(0, environment="dev") == events[::3]
    assert log.since(0, limit=2) == events[:2]


async def test_a_waiter_wakes_for_its_own_alone() -> None:
    log = EventLog(0)
    waiting = {
        name: asyncio.create_task(log.wait(environment, sandbox_id, 60))
        for name, environment, sandbox_id in (
            ("one", None, "sb-1"),
            ("other", None, "sb-2"),
            ("dev", "dev", None),
            ("main", "main", None),
            ("all", None, None),
        )
    }
    await asyncio.sleep(0)
    log.publish([draft(log, "sb-1", "main")])
    await asyncio.sleep(0.01)
    assert {name for name, task in waiting.items() if task.done()} == {"one", "main", "all"}
    for name in ("other", "dev"):
        waiting[name].cancel()
    await asyncio.gather(*waiting.values(), return_exceptions=True)
    assert log._waiting == {}, "who has gone leaves nothing"
    assert not await log.wait(None, "sb-1", 0.01)
    assert log._waiting == {}


async def test_thousands_wait_for_nothing() -> None:
    log, alone = EventLog(0), EventLog(0)
    waiting = [asyncio.create_task(log.wait(None, f"sb-{n}", 60)) for n in range(5000)]
    await asyncio.sleep(0)

    def published(to: EventLog) -> float:
        started = time.perf_counter()
        for _ in range(500):
            to.publish([draft(to, "sb-busy")])
        return time.perf_counter() - started

    # Were each of those who wait looked at, it would be some thousand times as long.
    assert min(published(log) for _ in range(3)) < 50 * min(published(alone) for _ in range(3))
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_follower_misses_nothing_through_a_restart() -> None:
    world = World()
    controller = await world.controller()
    await controller.parts.accounts.create_environment("dev", Quota(), INSIDE)
    seen: list[SandboxEvent] = []

    async def follow() -> None:
        after = seen[-1].id if seen else 0
        while True:
            page = await controller.parts.event_feed.events(after, None, "main", 5, INSIDE)
            seen.extend(page)
            after = seen[-1].id

    for _ in range(3):
        following = controller.begin(follow())
        for _ in range(3):
            info, _ = await controller.begin(controller.parts.sandboxes.create(spec(), 30, True, INSIDE))
            await controller.begin(controller.parts.sandboxes.terminate(info.id, INSIDE))
        await controller.kill()
        assert following.done()
        controller = await world.controller()
    after = seen[-1].id
    seen += await controller.parts.event_feed.events(after, None, None, 0, INSIDE)
    assert [event.id for event in seen] == [event.id for event in world.disk.events]
    assert [event.kind for event in seen[:4]] == ["created", "starting", "running", "terminated"]
    assert seen[3].data == {
        "reason": "terminated",
        "returncode": 137,
        "message": "terminated on request",
        "token": "cluster",
        "node_id": "node-1",
    }
    assert controller.parts.writer.events.last == seen[-1].id
    await controller.kill()


async def test_the_first_event_ends_a_wait_at_once() -> None:
    controller = await World().controller()
    waiting = controller.begin(controller.parts.event_feed.events(None, None, None, 20, INSIDE))
    await asyncio.sleep(0)
    started = time.monotonic()
    await controller.begin(controller.parts.sandboxes.create(spec(), 30, True, INSIDE))
    assert (await waiting)[0].kind == "created"
    assert time.monotonic() - started < 15
    await controller.kill()
