"""What the controller answers about volumes, and that a kill leaves nothing half made."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from shoal.actors.controller.record import from_row, to_row
from shoal.actors.controller.volumes import EPHEMERAL_S, Volumes
from shoal.actors.objects import ObjectAccess
from shoal.actors.volumes import VersionChange
from shoal.model import grants
from shoal.model.access import INSIDE, Quota
from shoal.model.errors import AlreadyExists, FailedPrecondition, QuotaExceeded, Unavailable, VolumeNotFound
from shoal.model.info import Listing
from shoal.model.mounts import MountSpec
from shoal.model.settings import Settings
from shoal.model.volumes import VolumeInfo, VolumesUse, VolumeUse
from tests.fakes.volumes import MemoryVolumes
from tests.unit.builders import spec
from tests.unit.controller_world import SECRET, Controller, World
from tests.unit.fake_slot import NODE

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


def _volumes(controller: Controller, keeper: MemoryVolumes, now: list[float]) -> Volumes:
    volumes = controller.parts.volumes
    volumes.keeper = keeper
    volumes.clock = lambda: now[0]
    return volumes


def _scopes(token: str) -> tuple[str, ...]:
    return tuple(grants.verify(SECRET, token, time.time()).scopes)


async def _make(volumes: Volumes, name: str, **options: Any) -> Any:
    given = {"size": None, "files": None, "ephemeral": False, "exist_ok": False, **options}
    return await volumes.create(name, "main", *given.values(), INSIDE)


async def test_life_of_a_volume() -> None:
    keeper, now = MemoryVolumes(), [1000.0]
    world = World()
    controller = await world.controller()
    volumes = _volumes(controller, keeper, now)
    made = await _make(volumes, "data", size=1 << 30)
    assert keeper.made == {made.id}
    with pytest.raises(AlreadyExists):
        await _make(volumes, "data")
    assert (await _make(volumes, "data", exist_ok=True)).id == made.id
    assert (
        volumes.held(spec(volumes=(MountSpec("/d", volume="data"), MountSpec("/e", volume=made.id)))) == (made.id,) * 2
    )
    with pytest.raises(VolumeNotFound) as missing:
        volumes.held(spec(volumes=(MountSpec("/d", volume="none"),)))
    assert missing.value.field == "volumes"
    assert (await controller.parts.volume_uses.volume("data", "main", True, INSIDE)).use == VolumeUse(4096, 1, 1000.0)
    await volumes.delete("data", "main", False, INSIDE)
    assert volumes.volumes("main", False, INSIDE) == []
    other = await _make(volumes, "data")
    with pytest.raises(AlreadyExists):
        await volumes.undelete("data", "main", INSIDE)
    await volumes.delete(other.id, "main", True, INSIDE)
    await volumes.sweep()
    assert keeper.made == {made.id}
    assert (await volumes.undelete("data", "main", INSIDE)).id == made.id
    await volumes.delete("data", "main", False, INSIDE)
    now[0] += Settings().volumes.grace + 1
    await volumes.sweep()
    assert keeper.made == set()
    with pytest.raises(VolumeNotFound):
        await volumes.undelete("data", "main", INSIDE)
    await controller.parts.stop()


async def test_what_is_half_made_goes_and_the_rest_is_found_again() -> None:
    keeper, now = MemoryVolumes(), [1000.0]
    world = World()
    controller = await world.controller()
    volumes = _volumes(controller, keeper, now)
    keeper.fail = True
    with pytest.raises(Unavailable):
        await _make(volumes, "broken")
    assert keeper.made == set()
    keeper.fail = False
    kept = await _make(volumes, "kept")
    short = await _make(volumes, "short", ephemeral=True)
    await volumes.sweep()
    await controller.parts.stop()
    again = await world.controller()
    volumes = _volumes(again, keeper, now)
    assert {each.id for each in volumes.volumes("main", False, INSIDE)} == {kept.id, short.id}
    await volumes.sweep()
    now[0] += EPHEMERAL_S + 1
    await volumes.sweep()
    assert keeper.made == {kept.id}
    await again.parts.stop()


async def test_a_volume_that_is_made_while_others_are_removed_stays() -> None:
    keeper = MemoryVolumes()
    world = World()
    controller = await world.controller()
    volumes = _volumes(controller, keeper, [1000.0])
    await volumes.delete((await _make(volumes, "old")).id, "main", True, INSIDE)
    destroying, making, destroyed, made = (threading.Event() for _ in range(4))

    def destroy(volume_id: str, storage: ObjectAccess) -> None:
        destroying.set()
        assert destroyed.wait(10)
        MemoryVolumes.destroy(keeper, volume_id, storage)

    def create(volume_id: str, size: int | None, files: int | None, storage: ObjectAccess) -> None:
        making.set()
        assert made.wait(10)
        MemoryVolumes.create(keeper, volume_id, size, files, storage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeper, "destroy", destroy)
        patch.setattr(keeper, "create", create)
        creating = asyncio.create_task(_make(volumes, "new"))
        await asyncio.to_thread(making.wait, 10)
        sweeping = asyncio.create_task(volumes.sweep())
        await asyncio.to_thread(destroying.wait, 10)
        with pytest.raises(VolumeNotFound):
            await volumes.undelete("old", "main", INSIDE)
        made.set()
        new = await creating
        destroyed.set()
        await sweeping
    assert keeper.made == {new.id}
    assert [each.id for each in volumes.volumes("main", False, INSIDE)] == [new.id]
    await controller.parts.stop()


async def test_what_only_the_head_mounts_is_refused_elsewhere() -> None:
    world = World()
    controller = await world.controller()
    volumes = _volumes(controller, MemoryVolumes(), [1.0])
    await _make(volumes, "data")
    machine = controller.parts.nodes.capacities()[NODE]
    with pytest.MonkeyPatch.context() as patch:
        both = {NODE: machine, "other": replace(machine, region="a")}
        patch.setattr(type(controller.parts.nodes), "capacities", lambda nodes: both)
        controller.parts.admission.nodes_mounting = lambda spec: (NODE,) if spec.volumes else None
        mounting = spec(volumes=(MountSpec("/d", volume="data"),), regions=("a",))
        with pytest.raises(FailedPrecondition) as refused:
            await controller.parts.sandboxes.create(mounting, 10, True, INSIDE)
        assert (refused.value.state, refused.value.field) == ("head_only", "volumes")
        controller.parts.admission.check_possible(replace(mounting, regions=()))
        controller.parts.admission.check_possible(replace(mounting, volumes=()))
    await controller.parts.stop()


async def test_a_volume_has_another_name_and_versions() -> None:
    world = World()
    controller = await world.controller()
    volumes = _volumes(controller, MemoryVolumes(), [1.0])
    asked: list[VersionChange] = []

    async def ask(handle: Any, method: str, volume_id: str, change: VersionChange, timeout_s: float) -> None:
        asked.append(change)

    volumes.call = ask
    made = await _make(volumes, "data")
    other = await _make(volumes, "other")
    with pytest.raises(AlreadyExists):
        await volumes.rename("other", "main", "data", INSIDE)
    assert (await volumes.rename("data", "main", "new", INSIDE)).id == made.id
    assert volumes.known("new", "main", INSIDE).id == made.id
    versions = controller.parts.volume_versions
    one = (await versions.snapshot("new", "main", "one", INSIDE)).version("one")
    two = (await versions.snapshot("new", "main", "two", INSIDE)).version("two")
    with pytest.raises(AlreadyExists):
        await versions.snapshot("new", "main", "two", INSIDE)
    assert VolumeInfo.from_dict(volumes.known("new", "main", INSIDE).to_dict()).versions == (one, two)
    info, _ = await controller.parts.sandboxes.create(spec(volumes=(MountSpec("/d", volume="new"),)), 10, True, INSIDE)
    with pytest.raises(FailedPrecondition) as mounted:
        await versions.revert("new", "main", "one", INSIDE)
    assert mounted.value.state == "mounted"
    await controller.parts.sandboxes.terminate(info.id, INSIDE)
    await versions.revert("new", "main", "one", INSIDE)
    await versions.delete("new", "main", "one", INSIDE)
    with pytest.raises(VolumeNotFound):
        await versions.revert("new", "main", "one", INSIDE)
    assert [each.do for each in asked] == ["make", "make", "revert", "tidy"]
    assert [each.keep for each in asked] == [(), (one.id,), (one.id, two.id), (two.id,)]
    assert other.versions == ()
    await controller.parts.stop()


async def test_an_environment_has_so_many() -> None:
    world = World()
    controller = await world.controller()
    volumes = _volumes(controller, MemoryVolumes(), [1.0])
    volumes.settings = volumes.settings.model_copy(update={"count": 1})
    await asyncio.gather(_make(volumes, "one"))
    with pytest.raises(QuotaExceeded):
        await _make(volumes, "two")
    await controller.parts.stop()


async def test_the_volumes_of_an_environment_have_so_much_together() -> None:
    world = World()
    controller = await world.controller()
    volumes = _volumes(controller, MemoryVolumes(), [1.0])
    await controller.parts.accounts.set_quota("main", Quota(volume_bytes=3 << 30, volume_files=100), INSIDE)
    one = await _make(volumes, "one", size=2 << 30, files=60)
    for size, files, name in (
        (None, 10, "size"),
        (2 << 30, 10, "size"),
        (1 << 30, 50, "files"),
        (1 << 30, None, "files"),
    ):
        with pytest.raises(QuotaExceeded) as refused:
            await _make(volumes, "two", size=size, files=files)
        assert refused.value.field == name
    await volumes.limit("one", "main", 1 << 30, 60, INSIDE)
    await _make(volumes, "two", size=2 << 30, files=40)
    with pytest.raises(QuotaExceeded):
        await volumes.limit(one.id, "main", 2 << 30, 60, INSIDE)
    usage = controller.parts.accounts.environment("main", INSIDE).usage
    assert (usage.volume_bytes, usage.volume_files) == (3 << 30, 100)
    await controller.parts.stop()


async def test_what_all_volumes_of_an_environment_hold() -> None:
    keeper, now = MemoryVolumes(), [1000.0]
    world = World()
    controller = await world.controller()
    volumes, uses = _volumes(controller, keeper, now), controller.parts.volume_uses
    for name in ("one", "two", "three"):
        await _make(volumes, name, size=1 << 30)
    await volumes.delete("three", "main", False, INSIDE)
    await uses.turn()
    assert sorted(each.use is not None for each in uses.listed("main", False, INSIDE)) in (
        [False, False],
        [False, True],
    )
    await controller.parts.accounts.set_quota("main", Quota(volume_bytes=4 << 30), INSIDE)
    total = await uses.of_environment("main", INSIDE)
    assert total == VolumesUse("main", 3, 3 * 4096, 3, 3 << 30, 0, 4 << 30, None)
    assert [each.use for each in uses.listed("main", False, INSIDE)] == [VolumeUse(4096, 1, 1000.0)] * 2
    now[0] += 1000
    await uses.turn()  # the last look at what may have changed
    await uses.of_environment("main", INSIDE)
    keeper.fail = True  # nothing is measured that nobody has used since
    now[0] += 1000
    assert (await uses.of_environment("main", INSIDE)).unmeasured == 0
    await controller.parts.sandboxes.create(spec(volumes=(MountSpec("/d", volume="one"),)), 10, True, INSIDE)
    total = await uses.of_environment("main", INSIDE)
    assert (total.unmeasured, total.bytes) == (1, 3 * 4096)
    await controller.parts.stop()


async def test_slots_know_a_volume_by_its_id_and_a_hidden_sandbox_is_in_no_listing() -> None:
    world = World()
    controller = await world.controller()
    volumes = _volumes(controller, MemoryVolumes(), [1.0])
    made = await _make(volumes, "data")
    sandboxes = controller.parts.sandboxes
    info, _ = await sandboxes.create(spec(volumes=(MountSpec("/d", volume="data"),)), 10.0, True, INSIDE)
    record = sandboxes.registry.get(info.id)
    assert record is not None
    assert info.spec.volumes == (MountSpec("/d", volume="data"),)
    assert record.launch_spec.volumes == (MountSpec("/d", volume=made.id),)
    assert from_row(json.loads(json.dumps(to_row(record)))).launch_spec == record.launch_spec
    opened = await controller.parts.volume_files.open("data", "main", None, INSIDE)
    assert (await controller.parts.volume_files.open(made.id, "main", None, INSIDE)).id == opened.id
    assert opened.spec.volumes == (MountSpec("/volume", volume=made.id),)
    listed = (await sandboxes.select(Listing("main"), INSIDE)).sandboxes
    assert [each.id for each in listed] == [info.id]
    assert sandboxes.registry.usage("main").sandboxes == 1
    overview = controller.parts.overview_book.overview("main", None, INSIDE)
    assert (overview.states["running"], overview.create.count) == (1, 1)
    token = (await sandboxes.grant(opened.id, INSIDE)).token
    assert grants.SCOPE_EXEC in _scopes((await sandboxes.grant(info.id, INSIDE)).token)
    assert _scopes(token) == (grants.SCOPE_FILES,)
    await controller.parts.volume_files.delete_volume("data", "main", True, INSIDE)
    hidden = sandboxes.registry.get(opened.id)
    assert hidden is None or hidden.ended
    await volumes.sweep()
    assert made.id in volumes._volumes  # a user's sandbox has it
    assert (await volumes.access(made.id)).bucket
    await controller.parts.stop()
