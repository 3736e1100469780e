"""Images of sandboxes' files: names, environments, what needs one, what goes and when, and kills of the controller."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from shoal.actors.controller.capacity import Outlook
from shoal.actors.controller.ledger import NodeView
from shoal.actors.controller.machine import Machine
from shoal.actors.controller.placement import OnNode, Request, Wait, choose, tiers
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.room import Amount
from shoal.actors.controller.sandboxes import Sandboxes
from shoal.model.access import INSIDE, Caller, Quota, Scope
from shoal.model.errors import (
    EnvironmentNotFound,
    FailedPrecondition,
    ImageNotFound,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    SandboxEnded,
    ShoalError,
    Unavailable,
)
from shoal.model.images import ImageKind, ImageListing, ImageRecord, ImageState
from shoal.model.info import SandboxInfo
from shoal.model.spec import SandboxSpec
from tests.unit.builders import spec
from tests.unit.controller_world import MACHINE, NODE, Controller, World, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

ANN = Caller("tk-1", "dev", Scope.RUN)


async def created(controller: Controller, **changes: Any) -> SandboxInfo:
    info, _ = await controller.begin(controller.parts.sandboxes.create(spec(**changes), 20, True, INSIDE))
    return info


async def taken(controller: Controller, sandbox_id: str, caller: Caller = INSIDE, **options: Any) -> ImageRecord:
    asked = {"name": None, "ttl": None, "key": None, "path": None, **options}
    return await controller.begin(controller.parts.snapshots.snapshot(sandbox_id, **asked, caller=caller))


async def end(controller: Controller, *sandbox_ids: str) -> None:
    for sandbox_id in sandbox_ids:
        await controller.begin(controller.parts.sandboxes.terminate(sandbox_id, INSIDE))


def record_of(controller: Controller, sandbox_id: str) -> SandboxRecord:
    record = controller.parts.registry.get(sandbox_id)
    assert record is not None
    return record


async def test_a_sandbox_starts_from_an_image_by_id_and_by_name() -> None:
    world = World()
    controller = await world.controller()
    first = await created(controller)
    image = await taken(controller, first.id, name="agent")
    assert (image.kind, image.state, image.name) == (ImageKind.SNAPSHOT, ImageState.READY, "agent:latest")
    assert (image.parent, image.machines, image.sandbox_id) == ("shoal/base", (MACHINE,), first.id)
    assert world.disk.images[image.id].digest == image.digest
    for written in (image.id, "agent", "agent:latest", image.digest):
        info = await created(controller, image=written)
        assert info.spec.image == written
        record = record_of(controller, info.id)
        assert record.launch_spec.container_shape.image == image.digest
        await end(controller, info.id)
    assert [entry.action for entry in world.disk.audit].count("image.snapshot") == 1
    await end(controller, first.id)
    await controller.kill()


async def test_memory_is_given_by_gvisor_to_gvisor_and_stays_on_its_machine() -> None:
    world = World(fetching=True, nodes={NODE: 0, "n2": 0})
    controller = await world.controller()
    plain, inside = await created(controller), await created(controller)
    record = record_of(controller, inside.id)
    record.spec = replace(record.spec, runtime="runsc")
    snapshots = controller.parts.snapshots
    with pytest.raises(FailedPrecondition) as caught:
        await snapshots.checkpoint(plain.id, None, None, INSIDE)
    assert caught.value.state == "no_memory"
    image = await controller.begin(snapshots.checkpoint(inside.id, 60.0, "key", INSIDE))
    assert (image.kind, image.machines, image.sandbox_id) == (ImageKind.CHECKPOINT, (MACHINE,), inside.id)
    assert await controller.begin(snapshots.checkpoint(inside.id, 60.0, "key", INSIDE)) == image
    await controller.parts.image_storage.turn()
    assert world.stores == []
    with pytest.raises(InvalidRequest) as refused:
        await created(controller, image=image.id)
    assert refused.value.field == "runtime"
    assert [entry.action for entry in world.disk.audit].count("image.checkpoint") == 1
    await end(controller, plain.id, inside.id)
    await controller.kill()


async def test_what_is_no_image_is_refused_at_once() -> None:
    world = World()
    controller = await world.controller()
    await controller.parts.accounts.create_environment("dev", Quota(), INSIDE)
    first = await created(controller)
    image = await taken(controller, first.id, name="agent")
    for other in ("im-0000", image.id, image.digest, "shoal-images/cluster:" + image.id):
        with pytest.raises(ImageNotFound) as caught:
            await created(controller, image=other, environment="dev")
        assert caught.value.field == "image"
    assert (await created(controller, image="agent", environment="dev")).spec.image == "agent"  # a registry may have it
    bad: list[dict[str, Any]] = [
        {"name": "Up"},
        {"name": "a/b"},
        {"name": ""},
        {"ttl": -1.0},
        {"ttl": True},
        {"key": ""},
    ]
    for options in bad:
        with pytest.raises(InvalidRequest) as invalid:
            await taken(controller, first.id, **options)
        assert invalid.value.field in (next(iter(options)), "idempotency_key")
    with pytest.raises(NotFound):
        await taken(controller, first.id, ANN)
    with pytest.raises(EnvironmentNotFound):
        controller.parts.images.get("agent", "main", ANN)
    with pytest.raises(ImageNotFound):
        controller.parts.images.get(image.id, None, ANN)
    await end(controller, first.id)
    with pytest.raises(SandboxEnded):
        await taken(controller, first.id)
    assert set(world.images) == {image.id}
    await controller.kill()


async def test_an_image_that_something_needs_stays_until_nothing_does() -> None:
    world = World()
    controller = await world.controller()
    images = controller.parts.images
    first = await created(controller)
    image = await taken(controller, first.id, name="agent")
    child = await created(controller, image="agent")
    with pytest.raises(FailedPrecondition) as caught:
        await images.delete(image.id, None, False, INSIDE)
    assert (caught.value.state, caught.value.fields["in_use"]) == ("in_use", 1)
    assert images.get(image.id, None, INSIDE).in_use == 1
    await images.delete(image.id, None, True, INSIDE)
    with pytest.raises(ImageNotFound):
        images.get(image.id, None, INSIDE)
    with pytest.raises(ImageNotFound):
        await created(controller, image=image.id)
    assert await controller.parts.image_removal.turn()
    assert image.id in world.images
    await controller.kill()

    controller = await world.controller()  # which goes on with it
    assert record_of(controller, child.id).launch_spec.image == image.digest
    world.images_in_use = [image.id]  # its container is not removed yet
    await end(controller, child.id, first.id)
    assert await controller.parts.image_removal.turn()
    world.images_in_use = []
    await until(lambda: not world.images and not world.disk.images, "it is gone")
    await controller.kill()


async def test_names_move_and_images_are_listed_by_page() -> None:
    world = World()
    controller = await world.controller()
    images, box = controller.parts.images, await created(controller)
    made = [await taken(controller, box.id, name="app:v1") for _ in range(3)]
    assert images.get("app:v1", "main", INSIDE).id == made[2].id
    assert [world.disk.images[each.id].name for each in made] == [None, None, "app:v1"]
    renamed = await images.name(made[0].id, None, "app:v0", INSIDE)
    assert renamed.name == "app:v0"
    page = images.page(ImageListing(limit=2), INSIDE)
    rest = images.page(ImageListing(limit=2, before=page.reached), INSIDE)
    assert [each.id for each in (*page.images, *rest.images)] == [each.id for each in reversed(made)]
    assert rest.reached is None
    assert [each.id for each in images.page(ImageListing(name="app"), INSIDE).images] == [made[2].id, made[0].id]
    assert images.page(ImageListing(kind=ImageKind.BUILD), INSIDE).images == []
    assert (await images.name("app:v0", "main", None, INSIDE)).name is None
    before = {each.id for each in made[:2]}
    assert {each.id for each in await images.collect("main", 0.0, True, INSIDE)} == before
    assert {each.id for each in await images.collect("main", 0.0, False, INSIDE)} == before
    await until(lambda: set(world.images) == {made[2].id}, "the others are gone")
    await controller.kill()


async def test_what_expires_goes_and_what_is_not_used_for_long() -> None:
    world = World(settings={"limits": {"images": 3, "unused_images": 1000.0}})
    controller = await world.controller()
    box = await created(controller)
    short = await taken(controller, box.id, name="short:1", ttl=50.0)
    long = await taken(controller, box.id)
    named = await taken(controller, box.id, name="named:1")
    with pytest.raises(QuotaExceeded):
        await taken(controller, box.id)
    removal = controller.parts.image_removal
    removal.clock = lambda: time.time() + 60
    await removal.turn()
    assert set(world.images) == {long.id, named.id} == set(world.disk.images)
    assert short.id not in world.images
    removal.clock = lambda: time.time() + 1100
    child = await created(controller, image=long.id)  # it is used
    await removal.turn()
    assert set(world.images) == {long.id, named.id}
    await end(controller, child.id)
    removal.clock = lambda: time.time() + 2200
    await removal.turn()
    assert set(world.images) == {named.id}
    await controller.kill()


@pytest.mark.parametrize("after", [1, 2])
async def test_a_controller_that_is_killed_meanwhile_leaves_nothing(after: int) -> None:
    world = World(snapshot_s=0.01)
    controller = await world.controller()
    box = await created(controller)
    await until(lambda: world.disk.row(box.id)["state"] == "running", "it is on record")
    taking = controller.begin(controller.parts.snapshots.snapshot(box.id, "app:v1", None, None, None, INSIDE))
    controller.store._die_after = after
    await until(lambda: bool(world.images), "it is begun")
    written = ImageState.READY if after == 2 else ImageState.MAKING
    await until(lambda: {each.state for each in world.disk.images.values()} == {written}, "it is on record")
    await controller.kill()
    taking.cancel()

    controller = await world.controller()
    if after == 2:  # the image was on record as ready before
        assert controller.parts.images.get("app:v1", "main", INSIDE).sandbox_id == box.id
    else:
        await until(lambda: not world.images and not world.disk.images, "nothing is left")
        with pytest.raises(ImageNotFound):
            controller.parts.images.get("app:v1", "main", INSIDE)
    await controller.kill()


@pytest.mark.parametrize("error", [Unavailable("gone", actor="gone"), NotFound("none"), FailedPrecondition("full")])
async def test_what_fails_leaves_nothing(error: ShoalError) -> None:
    world = World(snapshot_fails=error)
    controller = await world.controller()
    box = await created(controller)
    with pytest.raises(Unavailable if isinstance(error, Unavailable) else FailedPrecondition):
        await taken(controller, box.id, name="app:v1")
    await until(lambda: not world.disk.images, "nothing is left")
    assert controller.parts.images.page(ImageListing(), INSIDE).images == []
    world.snapshot_fails = None
    assert (await taken(controller, box.id, key="once")).id == (await taken(controller, box.id, key="once")).id
    other = await created(controller)
    with pytest.raises(InvalidRequest) as caught:
        await taken(controller, other.id, key="once")
    assert caught.value.field == "key"
    await controller.kill()


async def test_what_the_store_does_not_take_is_removed_from_the_node_that_makes_it_meanwhile() -> None:
    world = World(snapshot_s=0.05)
    controller = await world.controller()
    box = await created(controller)
    world.disk.full = True
    with pytest.raises(Unavailable):
        await taken(controller, box.id)
    assert not world.disk.images
    world.disk.full = False
    await until(lambda: not world.images, "its node has none")
    assert controller.parts.images.page(ImageListing(), INSIDE).images == []
    await controller.kill()


async def test_the_steps_of_a_build_are_found_by_their_key() -> None:
    world = World()
    controller = await world.controller()
    box = await created(controller)
    snapshots, images = controller.parts.snapshots, controller.parts.images
    config = {"env": {"A": "1"}, "user": "", "workdir": "/", "entrypoint": [], "command": [], "labels": {}}
    step = await controller.begin(snapshots.save_build(box.id, "key-1", config, None, None, False))
    assert (step.kind, step.config["env"]) == (ImageKind.BUILD, {"A": "1"})
    assert (await snapshots.save_build(box.id, "key-1", config, None, None, False)).id == step.id
    assert images.find("main", "key-2") is None
    found = images.find("main", "key-1")
    assert found is not None
    assert found.id == step.id
    assert images.unknown([step.id, "im-none"]) == ["im-none"]
    await controller.kill()


async def test_a_pool_holds_its_image_and_sandboxes_are_taken_from_it() -> None:
    world = World(room=20)
    controller = await world.controller()
    pools = controller.parts.declared_pools
    box = await created(controller)
    image = await taken(controller, box.id, name="agent")
    await pools.create("agents", spec(image="agent"), 1, 1, False, INSIDE)
    await until(lambda: pools.pool("agents", "main", INSIDE).use.ready == 1, "one is ready")
    assert {shape.image for shape in world.prepared.values()} == {image.digest}
    with pytest.raises(FailedPrecondition):
        await controller.parts.images.delete(image.id, None, False, INSIDE)
    await created(controller, image=image.id)
    assert pools.pool("agents", "main", INSIDE).use.taken == 1
    assert pools.pool("agents", "main", INSIDE).use.in_use == 1
    await controller.kill()
    controller = await world.controller()
    assert controller.parts.images.get(image.id, None, INSIDE).in_use == 2
    await controller.kill()


async def test_a_machine_that_is_away_is_told_and_waited_for() -> None:
    world = World()
    controller = await world.controller()
    box = await created(controller)
    image = await taken(controller, box.id)
    world.away = True
    with pytest.raises(FailedPrecondition) as caught:
        await created(controller, image=image.id)
    assert caught.value.state == "away"
    await controller.parts.images.delete(image.id, None, False, INSIDE)
    assert not await controller.parts.image_removal.turn()
    assert image.id in world.disk.images
    world.away = False
    await controller.parts.image_removal.turn()
    assert not world.images
    assert not world.disk.images
    await controller.kill()


async def test_forks_have_the_spec_and_the_files_and_nothing_else_stays() -> None:
    world = World()
    controller = await world.controller()
    box = await created(controller, name="web", env={"A": "1"}, tags={"of": "test"}, timeout=77.0)
    fork = controller.parts.forks.fork
    made = await controller.begin(fork(box.id, 3, 20.0, "once", False, INSIDE))
    again = await controller.begin(fork(box.id, 3, 20.0, "once", False, INSIDE))
    assert [info.id for info, _ in made] == [info.id for info, _ in again]
    (image_id,) = {info.spec.image for info, _ in made}
    for info, grant in made:
        assert (info.spec.name, dict(info.spec.env), dict(info.tags)) == (None, {"A": "1"}, {"of": "test"})
        assert info.spec.timeout == 77.0
        assert grant is not None
    with pytest.raises(ImageNotFound):
        controller.parts.images.get(image_id, None, INSIDE)
    assert image_id in world.images
    await end(controller, *(info.id for info, _ in made))
    await until(lambda: not world.images and not world.disk.images, "the snapshot is gone")
    await controller.kill()


async def test_forks_with_memory_go_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    controller = await world.controller()
    fork = controller.parts.forks.fork
    box = await created(controller, command=("sleep", "9"))
    with pytest.raises(FailedPrecondition) as caught:
        await controller.begin(fork(box.id, 2, 20.0, "plain", True, INSIDE))
    assert caught.value.state == "no_memory"
    record = record_of(controller, box.id)
    record.spec = replace(record.spec, runtime="runsc")
    asked: list[SandboxSpec] = []

    async def create_many(_: Sandboxes, specs: list[SandboxSpec], *__: object) -> list[ShoalError]:
        asked.extend(specs)
        assert specs[0].image in world.images
        return [QuotaExceeded("no") for _ in specs]

    monkeypatch.setattr(Sandboxes, "create_many", create_many)
    with pytest.raises(QuotaExceeded):
        await controller.begin(fork(box.id, 2, 20.0, "once", True, INSIDE))
    assert [(each.command, each.runtime, each.idempotency_key) for each in asked] == [
        ((), "runsc", "once:0"),
        ((), "runsc", "once:1"),
    ]
    assert [entry.action for entry in world.disk.audit].count("image.checkpoint") == 1
    await until(lambda: not world.images and not world.disk.images, "the checkpoint is gone")
    await end(controller, box.id)
    await controller.kill()


async def test_forks_are_all_or_none() -> None:
    world = World()
    controller = await world.controller()
    await controller.parts.accounts.set_quota("main", Quota(sandboxes=3), INSIDE)
    box = await created(controller)
    with pytest.raises(QuotaExceeded):
        await controller.begin(controller.parts.forks.fork(box.id, 3, 20.0, "once", False, INSIDE))
    assert [record.id for record in controller.parts.registry.live()] == [box.id]
    await until(lambda: not world.images and not world.disk.images, "the snapshot is gone")
    for count, key, field in ((0, "k", "count"), (1001, "k", "count"), (1, "", "idempotency_key")):
        with pytest.raises(InvalidRequest) as caught:
            await controller.parts.forks.fork(box.id, count, 20.0, key, False, INSIDE)
        assert caught.value.field == field
    await end(controller, box.id)
    with pytest.raises(SandboxEnded):
        await controller.parts.forks.fork(box.id, 1, 20.0, "later", False, INSIDE)
    await controller.kill()


async def test_a_request_with_an_image_is_placed_where_that_is() -> None:
    views = {name: NodeView(name, Amount(4.0, 4096.0), Amount(4.0, 4096.0)) for name in ("n1", "n2", "n3")}
    shape = spec().slot_shape

    def chosen(*nodes: str) -> OnNode | Wait:
        request = Request(shape, nodes=nodes)
        return choose(request, tiers(request, views.values()), lambda fits: Outlook.NONE)

    assert chosen("n2") == OnNode("n2")
    views["n2"].free = Amount()
    waiting = chosen("n2")
    assert isinstance(waiting, Wait)
    assert waiting.selector.nodes == ("n2",)
    assert not Request(shape, nodes=("n2",)).meets(Request(shape, nodes=("n1",)))
    assert not Request(shape, nodes=("n2",)).fits(
        Machine(64.0, 1 << 20, 64.0, 1 << 20, 0, None, ("runc",), 24576, 1 << 20)
    )
