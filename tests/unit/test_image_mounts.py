"""Images mounted into sandboxes that run: what the controller records and refuses, and what its end leaves; the same of
a node over containers in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from shoal.actors.engines.fake import EngineBroken
from shoal.model.access import INSIDE
from shoal.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    ImageNotFound,
    Internal,
    InvalidRequest,
    NotFound,
    SandboxEnded,
    ShoalError,
    Unavailable,
)
from shoal.model.mounts import MountSpec
from shoal.model.secrets import SecretUse
from tests.unit.builders import spec
from tests.unit.controller_world import Controller, World, until
from tests.unit.node_world import Machine, machine
from tests.unit.test_controller_images import created, end, record_of, taken

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def mount(controller: Controller, sandbox_id: str, image: str, path: str) -> dict[str, str]:
    info = await controller.begin(controller.parts.image_mounts.mount(sandbox_id, image, path, INSIDE))
    return dict(info.mounted_images)


async def test_one_is_in_use_and_on_record_until_the_sandbox_ends() -> None:
    world = World()
    controller = await world.controller()
    first, other = await created(controller), await created(controller)
    image = await taken(controller, first.id, name="data", path="/srv/data")
    assert image.parent is None
    for written in ("data", image.id):
        assert await mount(controller, other.id, written, "/mnt") == {"/mnt": image.id}
    assert await mount(controller, other.id, "python:3.12", "/py") == {"/mnt": image.id, "/py": "python:3.12"}
    assert world.mounted[other.id] == {"/mnt": image.digest, "/py": "python:3.12"}
    with pytest.raises(FailedPrecondition):
        await controller.parts.images.delete(image.id, None, False, INSIDE)
    await controller.parts.image_mounts.unmount(other.id, "/py", INSIDE)
    world.mounted.clear()
    await controller.kill()
    later = await world.controller()
    await until(lambda: world.mounted == {other.id: {"/mnt": image.digest}}, "it is mounted again")
    assert record_of(later, other.id).info.mounted_images == {"/mnt": image.id}
    await end(later, other.id)
    assert later.parts.images.get(image.id, None, INSIDE).in_use == 0
    with pytest.raises(SandboxEnded):
        await mount(later, other.id, image.id, "/mnt")
    await end(later, first.id)
    await later.kill()


async def test_what_cannot_be_mounted_is_refused_by_its_field() -> None:
    world = World()
    controller = await world.controller()
    first = await created(controller)
    record = record_of(controller, first.id)
    uses = (SecretUse("s", directory="/run/secret"),)
    record.spec = replace(record.spec, volumes=(MountSpec("/data", volume="v"),), secrets=uses)
    await mount(controller, first.id, "shoal/base", "/mnt/a")
    for path in ("/mnt/a/b", "/mnt", "/data", "/data/x", "/run"):
        with pytest.raises(AlreadyExists) as taken_already:
            await mount(controller, first.id, "shoal/base", path)
        assert taken_already.value.field == "path"
    for image, path, field in (("shoal/base", "x", "path"), ("shoal/base", "/proc", "path"), ("", "/x", "image")):
        with pytest.raises(InvalidRequest) as refused:
            await mount(controller, first.id, image, path)
        assert refused.value.field == field
    with pytest.raises(ImageNotFound):
        await mount(controller, first.id, "im-2fq7c3j5kx6n4a7b", "/x")
    record.spec = replace(record.spec, runtime="runsc")
    asked: list[Any] = [lambda: mount(controller, first.id, "shoal/base", "/x"),
                        lambda: taken(controller, first.id, path="/srv")]  # fmt: skip
    for call in asked:
        with pytest.raises(FailedPrecondition) as no_mounts:
            await call()
        assert no_mounts.value.state == "no_mounts"
    assert world.mounted == {first.id: {"/mnt/a": "shoal/base"}}
    await end(controller, first.id)
    await controller.kill()


@pytest.mark.parametrize("error", [Unavailable("away"), InvalidRequest("path: no", field="path")])
async def test_a_failure_leaves_nothing(error: ShoalError) -> None:
    world = World()
    controller = await world.controller()
    first = await created(controller)
    world.mount_fails = error
    with pytest.raises(type(error)):
        await mount(controller, first.id, "shoal/base", "/mnt")
    assert record_of(controller, first.id).info.mounted_images == {}
    assert world.mounted[first.id] == {}
    world.mount_fails, world.mount_s = None, 0.05
    mounting = asyncio.create_task(mount(controller, first.id, "shoal/base", "/mnt"))
    await asyncio.sleep(0.01)
    await end(controller, first.id)
    with pytest.raises(SandboxEnded):
        await mounting
    assert record_of(controller, first.id).mounted == {}
    await controller.kill()


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    async with machine(monkeypatch) as made:
        yield made


async def test_a_node_knows_after_a_restart_what_is_mounted(place: Machine) -> None:
    for call in (place.node.mount_image("sb-1", "shoal/base", "/mnt"), place.node.unmount_image("sb-1", "/mnt")):
        with pytest.raises(NotFound):
            await call
    started = await place.node.start_container("sb-1", spec())
    with pytest.raises(ImageNotFound):
        await place.node.mount_image("sb-1", "none:1", "/mnt")
    place.engine.inject(EngineBroken("mount_image"))
    with pytest.raises(Internal):
        await place.node.mount_image("sb-1", "shoal/base", "/mnt")
    assert (await place.parts()).containers.records[started.key].images == {}
    made = await place.node.snapshot_directory("sb-1", "im-1", "/srv")
    await place.node.mount_image("sb-1", made.digest, "/mnt")
    with pytest.raises(FailedPrecondition):
        await place.node.remove_image("im-1")
    await place.restart()
    assert (await place.parts()).containers.records[started.key].images == {"/mnt": made.digest}
    await place.node.unmount_image("sb-1", "/mnt")
    assert (await place.parts()).containers.records[started.key].images == {}
