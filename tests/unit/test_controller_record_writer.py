"""The controller's way to its store: what is refused, what comes late, what order it has."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from shoal.actors.controller import record_writer
from shoal.actors.controller.events import EventLog
from shoal.actors.controller.record_writer import RecordWriter
from shoal.actors.controller.store import Change
from shoal.cluster.store import open_store
from shoal.model.access import INSIDE
from shoal.model.errors import FailedPrecondition, Internal, ShoalError, Unavailable
from shoal.model.states import Reason, State
from tests.contract.store.samples import entry, event, living
from tests.unit.builders import spec
from tests.unit.controller_world import Away, Controller, Refusal, World, _nothing, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]  # a machine may stand still for seconds


def settings(state_dir: Path) -> dict[str, Any]:
    return {"state_dir": str(state_dir), "store": {"url": None, "retention": 60.0}}


class TestWhoseStoreItIs:
    """With the real store."""

    async def test_one_that_is_damaged_is_no_other_controller_s(self, tmp_path: Path) -> None:
        file = tmp_path / "controller" / "c1.sqlite"
        first = open_store(settings(tmp_path))
        await first.open("c1", 10)
        await first.write(Change(sandboxes=[living("sb-1")], audit=[entry()]))
        await first.close()
        with sqlite3.connect(file) as connection:
            ((page, size),) = connection.execute(
                "SELECT rootpage, page_size FROM sqlite_master, pragma_page_size WHERE name = 'audit'"
            )
        connection.close()
        with file.open("r+b") as damaged:
            damaged.seek((page - 1) * size)
            damaged.write(b"\xff" * size)

        overtaken: list[bool] = []
        mine = RecordWriter(open_store(settings(tmp_path)), EventLog(0), lambda: overtaken.append(True))
        await mine.store.open("c1", 10)
        with pytest.raises(FailedPrecondition, match="damaged"):
            await mine.write(Change(audit=[entry()], events=[event(1)]))
        assert not overtaken
        await mine.close()

    async def test_a_controller_learns_from_forgetting_too_that_it_was_overtaken(self, tmp_path: Path) -> None:
        overtaken: list[bool] = []
        mine = RecordWriter(open_store(settings(tmp_path)), EventLog(0), lambda: overtaken.append(True))
        await mine.store.open("c1", 10)
        await mine.expire(1.0)
        assert not overtaken
        other = open_store(settings(tmp_path))
        await other.open("c1", 10)
        with pytest.raises(Unavailable):
            await mine.expire(1.0)
        assert overtaken
        await other.close()
        await mine.close()


async def made(controller: Controller, **changes: object) -> str:
    info, _ = await controller.begin(controller.parts.sandboxes.create(spec(**changes), 60, True, INSIDE))
    return info.id


class TestWhatIsRefused:
    """It was never done: not in memory, and no later write carries it to the disk."""

    async def test_ends_that_two_ask_for_at_once(self) -> None:
        world = World()
        controller = await world.controller()
        sandboxes = controller.parts.sandboxes
        sandbox_id = await made(controller, persistent=True)
        world.disk.full = True
        ending = [controller.begin(sandboxes.terminate(sandbox_id, INSIDE)) for _ in range(2)]
        refused = await asyncio.gather(*ending, return_exceptions=True)
        assert all(isinstance(error, Unavailable) for error in refused)
        world.disk.full = False
        await controller.begin(sandboxes.set_tags(sandbox_id, {"a": "b"}, INSIDE))
        assert world.disk.row(sandbox_id)["ended_by"] is None
        await controller.kill()

    async def test_an_end_that_another_write_passes_by(self) -> None:
        world = World()
        controller = await world.controller()
        sandboxes = controller.parts.sandboxes
        sandbox_id = await made(controller, persistent=True)
        refusal = Refusal(world)
        ending = controller.begin(sandboxes.terminate(sandbox_id, INSIDE))
        await refusal.come.wait()
        tagging = controller.begin(sandboxes.set_tags(sandbox_id, {"a": "b"}, INSIDE))
        await asyncio.sleep(0)
        refusal.refuse.set()
        with pytest.raises(Unavailable):
            await ending
        assert (await tagging).tags == {"a": "b"}
        assert world.disk.row(sandbox_id)["ended_by"] is None
        await controller.kill()

        second = await world.controller()
        (record,) = second.parts.registry.live()
        assert record.state is State.RUNNING, "nobody ended it, though both were asked"
        await second.kill()

    async def test_tags_that_two_set_at_once(self) -> None:
        world = World()
        controller = await world.controller()
        sandboxes = controller.parts.sandboxes
        sandbox_id = await made(controller)
        world.disk.full = True
        tagging = [controller.begin(sandboxes.set_tags(sandbox_id, {"n": str(n)}, INSIDE)) for n in range(2)]
        assert all(isinstance(e, Unavailable) for e in await asyncio.gather(*tagging, return_exceptions=True))
        assert (await controller.begin(sandboxes.get(sandbox_id, INSIDE))).tags == {}
        await controller.kill()

    async def test_what_is_granted_is_in_what_is_written_next(self) -> None:
        world = World()
        controller = await world.controller()
        sandboxes = controller.parts.sandboxes
        sandbox_id = await made(controller)
        both = (sandboxes.set_tags(sandbox_id, {"a": "b"}, INSIDE), sandboxes.terminate(sandbox_id, INSIDE))
        await asyncio.gather(*(controller.begin(one) for one in both))
        await sandboxes.wait(sandbox_id, 20, INSIDE)
        row = world.disk.row(sandbox_id)
        assert (row["tags"], row["ended_by"], row["state"]) == ({"a": "b"}, "cluster", "terminated")
        await controller.kill()


class TestWhatIsLate:
    """What happened while the store was away, once it is back."""

    async def test_an_end_needs_no_store(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(record_writer, "_RETRY_S", 0.01)
        world = World()
        controller = await world.controller()
        sandbox_id = await made(controller)
        away = Away(world)
        info = await controller.begin(controller.parts.sandboxes.terminate(sandbox_id, INSIDE))
        assert (info.reason, world.containers) == (Reason.TERMINATED, {})
        assert world.disk.row(sandbox_id)["ended_by"] is None
        away.back()
        await until(lambda: world.disk.row(sandbox_id)["end"] is not None, "it is on record")
        assert world.disk.row(sandbox_id)["ended_by"] == "cluster"
        assert [entry.action for entry in world.disk.audit if entry.target == sandbox_id][-1] == "sandbox.terminate"
        await controller.kill()

    async def test_the_next_controller_says_the_same_of_an_end_that_is_not_on_record(self) -> None:
        world = World()
        first = await world.controller()
        sandbox_id = await made(first)
        Away(world)
        told = await first.begin(first.parts.sandboxes.terminate(sandbox_id, INSIDE))
        await first.kill()
        world.before_write = _nothing
        second = await world.controller()
        again = await second.begin(second.parts.sandboxes.wait(sandbox_id, 20, INSIDE))
        assert (told.reason, again.reason, world.containers) == (Reason.TERMINATED, Reason.TERMINATED, {})
        await second.kill()

    async def test_is_told_before_what_came_after_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(record_writer, "_RETRY_S", 60.0)  # the store is back long before it is tried again
        world = World(start_s=0.01)
        controller = await world.controller()
        sandboxes = controller.parts.sandboxes
        info, _ = await controller.begin(sandboxes.create(spec(), 60, False, INSIDE))
        await until(lambda: world.disk.row(info.id)["slot_id"] is not None, "it is being started")
        away = Away(world)
        await until(lambda: info.id in away.refused, "that it runs is not on record")
        away.back()
        await controller.begin(sandboxes.terminate(info.id, INSIDE))
        await sandboxes.wait(info.id, 20, INSIDE)
        told = await controller.begin(controller.parts.event_feed.events(0, info.id, None, 0, INSIDE))
        assert [event.kind for event in told] == ["created", "starting", "running", "terminated"]
        assert [event.kind for event in world.disk.events] == ["created", "starting", "running", "terminated"]
        await controller.kill()

    @pytest.mark.parametrize("error", [Internal("it cannot be held"), FailedPrecondition("the store refuses")])
    async def test_one_that_cannot_be_written_keeps_no_other_off(
        self, error: ShoalError, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(record_writer, "_RETRY_S", 0.01)
        world = World()
        controller = await world.controller()
        wrong, other = await made(controller), await made(controller)

        async def before_write(change: Change) -> None:
            if any(row["id"] == wrong and row["end"] is not None for row in change.sandboxes):
                raise error

        world.before_write = before_write
        away = Away(world)
        world.end(wrong, returncode=1)
        world.end(other, returncode=7)
        await until(lambda: away.refused == {wrong, other}, "neither end is on record")
        away.back()
        await until(lambda: world.disk.row(other)["end"] is not None, "the other's end is on record")
        assert world.disk.row(other)["end"]["returncode"] == 7
        await controller.kill()

    async def test_an_end_is_known_to_its_slot_until_it_is_on_record(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(record_writer, "_RETRY_S", 0.01)
        world = World()
        first = await world.controller()
        sandbox_id = await made(first)
        away = Away(world)
        world.end(sandbox_id, returncode=7)
        told = await first.begin(first.parts.sandboxes.wait(sandbox_id, 20, INSIDE))
        assert told.returncode == 7, "who waits for it need not wait for the store"
        await until(lambda: sandbox_id in away.refused, "its end is not on record")
        await first.kill()
        away.back()

        second = await world.controller()
        again = await second.begin(second.parts.sandboxes.wait(sandbox_id, 20, INSIDE))
        assert (again.reason, again.returncode) == (told.reason, 7)
        (slot,) = world.slots.values()
        await until(lambda: slot.sandbox_id is None, "it is free for the next")
        await second.kill()

    async def test_a_slot_is_free_once_its_end_is_on_record(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(record_writer, "_RETRY_S", 0.01)
        world = World()
        controller = await world.controller()
        sandbox_id = await made(controller)
        away = Away(world)
        world.end(sandbox_id, returncode=7)
        await until(lambda: sandbox_id in away.refused, "its end is not on record")
        away.back()
        (slot,) = world.slots.values()
        await until(lambda: slot.sandbox_id is None, "it is free for the next")
        assert world.disk.row(sandbox_id)["end"]["returncode"] == 7
        await controller.kill()
