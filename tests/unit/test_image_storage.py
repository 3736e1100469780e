"""Images into the object storage: what is stored and when, what any node may run, what is swept, and whose it is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from shoal.actors.controller.image_storage import to_store
from shoal.actors.controller.object_storage import ObjectStorage
from shoal.actors.stored_images import BLOBS, IMAGES, LAYERS, StoredImage, StoredLayer, key, write_image, write_layer
from shoal.model.access import INSIDE
from shoal.model.errors import FailedPrecondition, ImageNotFound, ShoalError, Unavailable
from shoal.model.images import ImageKind, ImageRecord, ImageState
from tests.fakes.objects import MemoryKeeper, MemoryStore
from tests.unit.builders import spec
from tests.unit.controller_world import NODE, Controller, World, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def record(number: int, **changes: Any) -> ImageRecord:
    return ImageRecord(f"im-{number}", "main", ImageKind.SNAPSHOT, float(number), digest=digest(number), **changes)


async def image_of(controller: Controller, **options: Any) -> ImageRecord:
    info, _ = await controller.begin(controller.parts.sandboxes.create(spec(), 20, True, INSIDE))
    snapshots = controller.parts.snapshots
    return await controller.begin(snapshots.snapshot(info.id, None, None, None, None, caller=INSIDE))


def test_what_is_ready_and_not_stored_is_stored_once_for_each_digest() -> None:
    records = [
        record(3),
        record(1, stored=True),
        record(2, state=ImageState.MAKING),
        record(5, state=ImageState.GOING),
        record(4),
        replace(record(6), kind=ImageKind.CHECKPOINT),
        ImageRecord("im-x", "dev", ImageKind.BUILD, 9.0, digest=digest(3)),
    ]
    assert [(name, len(found)) for name, found in to_store(records, {digest(4)}).items()] == [(digest(3), 2)]
    assert list(to_store(records, ())) == [digest(3), digest(4)]


@pytest.mark.parametrize(
    ("nodes", "settings", "fetching", "stored"),
    [
        (1, {}, True, False),  # of a server on its own disk the only machine has nothing
        (2, {}, True, True),
        (1, {"objects": {"bucket": "bucket"}}, True, True),
        (2, {}, False, False),  # images of this engine stay where they are
    ],
)
async def test_an_image_is_stored_where_that_helps(
    nodes: int, settings: dict[str, Any], fetching: bool, stored: bool
) -> None:
    world = World(settings=settings, fetching=fetching, nodes={NODE: 0, **dict.fromkeys(["n2"][: nodes - 1], 0)})
    controller = await world.controller()
    image = await image_of(controller)
    await controller.parts.image_storage.turn()
    if stored:
        await until(lambda: controller.parts.images.get(image.id, None, INSIDE).stored, "it is stored")
        assert world.stores == [(image.digest, False)]
        assert controller.parts.image_storage.nodes.known_nodes()
        assert controller.parts.images.use.nodes_with(image.digest) is None
    else:
        assert world.stores == []
        assert controller.parts.images.use.nodes_with(image.digest) == (NODE,)
    await controller.kill()


async def test_what_could_not_be_stored_is_tried_again_also_by_the_next_controller() -> None:
    world = World(fetching=True, nodes={NODE: 0, "n2": 0})
    controller = await world.controller()
    storage = controller.parts.image_storage
    now = [100.0]
    storage.clock = lambda: now[0]
    world.store_fails = [Unavailable("away"), ImageNotFound("it is gone from there")]
    image = await image_of(controller)
    for at, calls in ((100.0, 1), (104.0, 1), (106.0, 2), (200.0, 2)):
        now[0] = at
        await storage.turn()
        await asyncio.wait_for(storage.pause(), 1)
        storage.resume()
        assert len(world.stores) == calls, at
    await controller.kill()
    world.away = True
    controller = await world.controller()
    await controller.parts.image_storage.turn()
    assert len(world.stores) == 2  # its machine is away
    world.away = False
    await controller.parts.image_storage.turn()
    await until(lambda: controller.parts.images.get(image.id, None, INSIDE).stored, "it is stored")
    assert world.disk.images[image.id].stored
    await controller.parts.image_storage.ensure(image.digest)
    assert len(world.stores) == 3
    await controller.parts.image_storage.damaged(image.digest)
    assert not world.disk.images[image.id].stored
    await controller.parts.image_storage.turn()
    await until(lambda: world.disk.images[image.id].stored, "it is stored anew")
    assert world.stores[-1] == (image.digest, True)
    world.away = True  # any other machine fetches it
    assert controller.parts.images.use.nodes_with(image.digest) is None
    await controller.begin(controller.parts.sandboxes.create(spec(image=image.id), 20, True, INSIDE))
    await controller.kill()


def put_image(store: MemoryStore, number: int, *layers: int, age_s: float) -> set[str]:
    found = tuple(StoredLayer(digest(each), digest(1000 + each), 3) for each in layers)
    image = StoredImage(digest(number), 2, found)
    store.put(key(IMAGES, image.digest), write_image(image))
    store.put(key(BLOBS, image.digest), b"{}")
    for layer in found:
        store.put(key(LAYERS, layer.diff_id), write_layer(layer))
        store.put(key(BLOBS, layer.digest), b"abc")
    for name in image.needs():
        store.modified[name] = time.time() - age_s
    return image.needs()


async def test_the_sweep_removes_what_no_image_needs_and_is_not_young() -> None:
    world = World(fetching=True, nodes={NODE: 0, "n2": 0})
    controller = await world.controller()
    image = await image_of(controller)
    parts, store = controller.parts, world.objects.store
    parts.images.images.put(record(1, stored=True))
    shared = put_image(store, 1, 10, 11, age_s=1e5)
    gone = put_image(store, 2, 11, 12, age_s=1e5) - shared
    young = put_image(store, 3, 13, age_s=10)
    store.put(key(BLOBS, digest(99)), b"cut short")
    store.modified[key(BLOBS, digest(99))] = 0.0
    sweep = parts.image_sweep
    await sweep.turn()
    assert gone <= store.objects.keys()  # the first turn only looks
    parts.images.images.put(record(2, stored=True))
    await sweep.turn()
    assert gone <= store.objects.keys()
    parts.images.images.remove("im-2")
    writing = asyncio.create_task(sweep.turn())
    await writing
    assert shared | young <= store.objects.keys()
    assert not gone & store.objects.keys()
    assert key(BLOBS, digest(99)) not in store.objects
    for name in young:
        store.modified[name] = 0.0
    await sweep.turn()  # what was too young then is old enough now
    assert not young & store.objects.keys()
    calls = len(store.calls)
    await sweep.turn()
    assert len(store.calls) == calls
    assert image.digest
    await controller.kill()


async def test_a_node_waits_for_what_is_being_stored() -> None:
    world = World(fetching=True, nodes={NODE: 0, "n2": 0})
    controller = await world.controller()
    storage = controller.parts.image_storage
    image = await image_of(controller)
    use = controller.parts.images.use
    assert use.nodes_with(image.digest) is None  # though it is not stored yet
    assert use.nodes_near(image.digest) == (NODE,)
    world.store_fails = [Unavailable("away")]
    with pytest.raises(Unavailable):
        await storage.ensure(image.digest)
    await asyncio.gather(*(storage.ensure(image.digest) for _ in range(5)))
    assert len(world.stores) == 2
    with pytest.raises(ImageNotFound):
        await storage.ensure(digest(99))
    await controller.kill()


async def test_nothing_is_stored_while_the_sweep_is_at_work() -> None:
    world = World(fetching=True, nodes={NODE: 0, "n2": 0})
    controller = await world.controller()
    storage = controller.parts.image_storage
    await storage.pause()
    await image_of(controller)
    await storage.turn()
    assert world.stores == []
    storage.resume()
    await storage.turn()
    await until(lambda: len(world.stores) == 1, "it is stored")
    await controller.kill()


async def test_a_place_that_belongs_to_another_cluster_is_refused() -> None:
    keeper = MemoryKeeper()
    await ObjectStorage(keeper, "first").access()
    await ObjectStorage(keeper, "first").access()
    with pytest.raises(FailedPrecondition) as raised:
        await ObjectStorage(keeper, "second").access()
    assert raised.value.field == "objects.prefix"
    keeper.store.fail.append(Unavailable("away"))
    with pytest.raises(ShoalError):
        await ObjectStorage(keeper, "first").access()


async def test_a_deleted_image_is_unknown_to_nodes_that_fetched_it() -> None:
    world = World()
    controller = await world.controller()
    image = await image_of(controller)
    verbs, copy = controller.parts.images, f"copy-{image.digest.removeprefix('sha256:')}"
    assert verbs.unknown([image.id, copy, "im-none", "copy-none"]) == ["im-none", "copy-none"]
    await verbs.delete(image.id, None, True, INSIDE)
    await until(lambda: verbs.images.get(image.id) is None, "it is gone")
    assert verbs.unknown([copy]) == [copy]
    with pytest.raises(ImageNotFound):
        verbs.get(image.id, None, INSIDE)
    await controller.kill()
