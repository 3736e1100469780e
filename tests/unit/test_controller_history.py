"""What is known of sandboxes that have ended: in memory, and beyond that in the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from shoal.actors.controller import admission, history
from shoal.actors.controller.phase import SETTLED
from shoal.actors.controller.record import to_row
from shoal.model.access import INSIDE, Caller, Quota
from shoal.model.errors import DeadlineExceeded, InvalidRequest, NotFound, SandboxNotFound
from shoal.model.info import Listing
from shoal.model.states import Reason, State
from tests.unit.builders import spec
from tests.unit.controller_world import Controller, World, steps, until
from tests.unit.test_controller_accounts import make
from tests.unit.test_controller_parts import ended, running

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]  # a machine may stand still for seconds


async def test_what_ended_long_ago_is_found_in_the_store() -> None:
    world = World(settings={"limits": {"history": 3}})
    controller = await world.controller()
    sandboxes = controller.parts.sandboxes
    ids = []
    for number in range(10):
        made = await make(controller, spec(name=f"n{number}", tags={"even": str(number % 2 == 0)}))
        await controller.begin(sandboxes.terminate(made, Caller("tk-1")))
        ids.append(made)
    ids.append(await make(controller, spec()))
    for _ in range(2):  # before and after a restart
        old = await sandboxes.get(ids[0], INSIDE)
        assert (old.reason, old.message) == ("terminated", "terminated on request")
        assert (await sandboxes.find("n1", "main", INSIDE)).id == ids[1]
        assert (await sandboxes.terminate(ids[0], INSIDE)).ended
        seen: list[str] = []
        before = None
        while page := (await sandboxes.select(Listing(include_ended=True, limit=4, before=before), INSIDE)).sandboxes:
            seen += [info.id for info in page]
            before = (page[-1].created_at, page[-1].id)
        assert seen == ids[::-1]
        even = await sandboxes.select(Listing(include_ended=True, tags={"even": "True"}), INSIDE)
        assert [info.id for info in even.sandboxes] == ids[8::-2]
        assert even.reached is None
        with pytest.raises(SandboxNotFound):
            await sandboxes.get("sb-never", INSIDE)
        await controller.kill()
        controller = await world.controller()
        sandboxes = controller.parts.sandboxes
    await controller.kill()


async def test_what_could_not_be_made_leaves_little_however_much_was_asked_for() -> None:
    world = World(capacity=0)
    controller = await world.controller()
    asked = spec(
        env={f"V{n}": "hunter2" * 10_000 for n in range(10)}, command=("echo", "x" * 100_000), idempotency_key="k"
    )
    with pytest.raises(DeadlineExceeded):
        await controller.begin(controller.parts.sandboxes.create(asked, 0.01, True, INSIDE))
    [record] = controller.parts.registry.select(Listing(include_ended=True))
    await record.life.reached(SETTLED)
    assert record.weight < 20_000
    [kept] = world.disk.sandboxes.values()
    assert len(kept) < 6000
    assert "hunter2" not in kept
    await controller.kill()


async def test_a_create_that_comes_again_after_the_end_is_told_of_it() -> None:
    world = World()
    controller = await world.controller()
    wanted = spec(env={"A": "b"}, command=("sh", "-c", "x" * 10_000), idempotency_key="k")
    made = await make(controller, wanted)
    await controller.begin(controller.parts.sandboxes.terminate(made, INSIDE))
    for _ in range(2):  # before and after a restart
        assert await make(controller, wanted) == made
        with pytest.raises(InvalidRequest) as caught:
            await make(controller, replace(wanted, env={"A": "c"}))
        assert caught.value.field == "idempotency_key"
        await controller.kill()
        controller = await world.controller()
    await controller.kill()


async def test_a_thousand_replays_of_one_create_cost_one_write() -> None:
    world = World()
    controller = await world.controller()
    wanted = spec(idempotency_key="k")
    made = await make(controller, wanted)
    # Its creator is told that it runs while that is being written.
    await until(lambda: world.disk.row(made)["state"] == "running", "it is on record that it runs")
    writes = world.disk.writes
    again = await asyncio.gather(*(make(controller, wanted) for _ in range(1000)))
    assert len(set(again)) == 1
    assert world.disk.writes == writes
    await controller.kill()


async def test_a_key_is_good_for_as_long_as_its_sandbox_is_on_record() -> None:
    world = World(settings={"limits": {"history": 3}})
    controller = await world.controller()
    parts = controller.parts
    wanted = spec(idempotency_key="mine", env={"A": "b"})
    made = await make(controller, wanted)
    await controller.begin(parts.sandboxes.terminate(made, INSIDE))
    await parts.accounts.create_environment("other", Quota(), INSIDE)
    for _ in range(4):  # which is as much as memory has room for, of all environments together
        other = await make(controller, spec(environment="other"))
        await controller.begin(parts.sandboxes.terminate(other, INSIDE))
    assert parts.registry.get(made) is None
    assert {await make(controller, wanted) for _ in range(3)} == {made}
    with pytest.raises(InvalidRequest) as caught:
        await make(controller, replace(wanted, env={"A": "c"}))
    assert caught.value.field == "idempotency_key"
    assert await make(controller, replace(wanted, environment="other")) != made
    many = await controller.begin(parts.sandboxes.create_many([spec(idempotency_key="new")] * 10, 30, True, INSIDE))
    assert len({outcome[0].id for outcome in many if isinstance(outcome, tuple)}) == 1
    await controller.kill()


async def test_a_key_whose_create_failed_is_free_also_when_only_the_store_knows() -> None:
    world = World(capacity=0, settings={"limits": {"history": 1}})
    controller = await world.controller()
    wanted = spec(idempotency_key="again")
    for tried in (wanted, spec(), spec()):
        with pytest.raises(DeadlineExceeded):
            await controller.begin(controller.parts.sandboxes.create(tried, 0.01, True, INSIDE))
        while controller.parts.registry.live():
            await controller.parts.registry.live()[0].life.reached(SETTLED)
    assert controller.parts.registry.keyed("main", "again") is None
    world.capacity = 1
    assert (await controller.parts.sandboxes.get(await make(controller, wanted), INSIDE)).state is State.RUNNING
    await controller.kill()


class TestWhileTheStoreIsAsked:
    """Creates whose key only the store may know."""

    @pytest.fixture
    async def controller(self, anyio_backend: str) -> AsyncIterator[Controller]:
        world = World(settings={"limits": {"history": 1}})
        controller = await world.controller()
        for _ in range(2):
            await controller.begin(controller.parts.sandboxes.terminate(await make(controller, spec()), INSIDE))
        assert not controller.parts.registry.complete
        yield controller
        await controller.kill()

    async def test_one_that_is_given_up_leaves_nothing(
        self, controller: Controller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sandboxes, look = controller.parts.sandboxes, Look(controller, monkeypatch)
        creating = controller.begin(sandboxes.create(spec(idempotency_key="k"), 60, True, INSIDE))
        await look.come.wait()
        ending = controller.begin(sandboxes.give_up([("main", "k"), ("main", "x")], INSIDE))
        await steps(5)
        look.go_on.set()
        assert await ending == [("main", "k")]
        await asyncio.wait([creating])
        assert controller.parts.registry.live() == []

    async def test_one_that_others_ask_for_too_is_made(
        self, controller: Controller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sandboxes, look = controller.parts.sandboxes, Look(controller, monkeypatch)
        creating = [controller.begin(sandboxes.create(spec(idempotency_key="k"), 60, True, INSIDE)) for _ in range(3)]
        await look.come.wait()
        ending = controller.begin(sandboxes.give_up([("main", "k")], INSIDE))
        await steps(5)
        look.go_on.set()
        assert await ending == [("main", "k")]
        made = {info.id for info, _ in await asyncio.gather(*creating)}
        assert made == {record.id for record in controller.parts.registry.live()}
        assert len(made) == look.times == 1

    async def test_its_deadline_holds(self, controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
        sandboxes, look = controller.parts.sandboxes, Look(controller, monkeypatch)
        first = controller.begin(sandboxes.create(spec(idempotency_key="k"), 0.02, True, INSIDE))
        await look.come.wait()
        behind_it = controller.begin(sandboxes.create(spec(idempotency_key="k"), 0.01, True, INSIDE))
        for late in (first, behind_it):
            with pytest.raises(DeadlineExceeded) as caught:
                async with asyncio.timeout(20):
                    await late
            assert caught.value.fields["field"] == "deadline"
        assert controller.parts.registry.live() == [], "nothing was created"
        look.go_on.set()
        await make(controller, spec(idempotency_key="k"))

    async def test_it_has_what_is_left_of_its_deadline(
        self, controller: Controller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sandboxes, look = controller.parts.sandboxes, Look(controller, monkeypatch)
        now = time.time()
        monkeypatch.setattr(admission, "steady_time", lambda: now)
        creating = controller.begin(sandboxes.create(spec(idempotency_key="k"), 60, True, INSIDE))
        await look.come.wait()
        came = time.monotonic()
        await asyncio.sleep(0.01)
        took = time.monotonic() - came
        look.go_on.set()
        info, _ = await creating
        record = controller.parts.registry.get(info.id)
        assert record is not None
        assert record.deadline < now + 60 - took

    async def test_what_is_wrong_is_refused_before(
        self, controller: Controller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sandboxes, look = controller.parts.sandboxes, Look(controller, monkeypatch)
        look.go_on.set()
        good = spec(idempotency_key="k")
        for wrong, deadline in (
            (replace(good, image=""), 60),
            (replace(good, idempotency_key="x" * 257), 60),
            (good, 0),
            (good, float("nan")),
            (good, 1e9),
        ):
            with pytest.raises(InvalidRequest):
                await controller.begin(sandboxes.create(wrong, deadline, True, INSIDE))
        with pytest.raises(NotFound):
            await controller.begin(sandboxes.create(good, 60, True, Caller("tk-1", environment="other")))
        assert look.times == 0


class Look:
    """The look of a controller's store for a key, which comes and waits until it may go on; and how many did."""

    def __init__(self, controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
        self.come = asyncio.Event()
        self.go_on = asyncio.Event()
        self.times = 0
        self._look = controller.store.sandbox_keyed
        monkeypatch.setattr(controller.store, "sandbox_keyed", self._held_up)

    async def _held_up(self, key: str, environment: str) -> dict[str, Any] | None:
        self.times += 1
        self.come.set()
        await self.go_on.wait()
        return await self._look(key, environment)


class TestLongAgo:
    """Listings of what is in the store alone."""

    @pytest.fixture(autouse=True)
    def small_pages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(history, "_PAGE", 10)

    @pytest.mark.parametrize(
        ("listing", "wanted"),
        [
            (Listing(include_ended=True, tags={"special": "yes"}), ["sb-495", "sb-living", "sb-300", "sb-001"]),
            (Listing(states=(State.FAILED,)), ["sb-300", "sb-001"]),
        ],
        ids=["tags", "states"],
    )
    async def test_one_look_goes_over_a_part_of_it_and_says_where_it_ended(
        self, listing: Listing, wanted: list[str]
    ) -> None:
        controller = await world_with_a_past(special=(495, 300, 1), lost=(300, 1)).controller()
        listing = replace(listing, limit=10)
        found: list[str] = []
        looks = []
        while True:
            before = controller.store.looks
            page = await controller.parts.sandboxes.select(listing, INSIDE)
            looks.append(controller.store.looks - before)
            found += [info.id for info in page.sandboxes]
            if page.reached is None:
                break
            listing = replace(listing, before=page.reached)
        assert found == wanted
        assert looks == [20, 20, 11]
        await controller.kill()

    async def test_no_more_is_looked_at_than_what_is_asked_for_can_need(self) -> None:
        controller = await world_with_a_past().controller()
        page = await controller.parts.sandboxes.select(Listing(include_ended=True, limit=21), INSIDE)
        assert [info.id for info in page.sandboxes] == [f"sb-{n:03}" for n in range(499, 478, -1)]
        assert controller.store.looks == 3
        assert page.reached is None
        await controller.kill()


def world_with_a_past(special: tuple[int, ...] = (), lost: tuple[int, ...] = ()) -> World:
    """500 that have ended, of which memory has room for three, and one that lives and was created in their middle.

    `lost`: with their node.
    """
    world = World(settings={"limits": {"history": 3}}, containers={"sb-living": "c-1"})
    for number in range(500):
        reason = Reason.NODE_LOST if number in lost else Reason.TERMINATED
        record = ended(running(f"sb-{number:03}", tags={"special": "yes"} if number in special else {}), reason=reason)
        record.created_at = float(number)
        world.disk.put(to_row(record))
    living = running("sb-living", tags={"special": "yes"})
    living.created_at = 350.5
    world.disk.put(to_row(living))
    return world
