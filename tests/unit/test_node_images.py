"""Images that a node takes of its sandboxes: once, whoever asks; removed once nothing uses them; what a crash left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from shoal.actors.engines.fake import EngineBroken, EngineStuck, fake_image
from shoal.actors.names import image_reference
from shoal.model.errors import FailedPrecondition, ImageNotFound, Internal, NotFound
from tests.unit.builders import spec
from tests.unit.node_world import Machine, machine

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    async with machine(monkeypatch) as made:
        yield made


def names(place: Machine) -> set[str]:
    prefix = image_reference("test")
    return {name.removeprefix(prefix) for name in place.engine.images.known if name.startswith(prefix)}


async def none_known(image_ids: Sequence[str]) -> Sequence[str]:
    return image_ids


async def test_one_is_taken_once_and_stays_while_a_container_uses_it(place: Machine) -> None:
    await place.node.start_container("sb-1", spec())
    config = {"env": {"A": "1"}, "user": "", "workdir": "/", "entrypoint": ["x"], "command": [], "labels": {}}
    first, second = await asyncio.gather(*(place.node.snapshot_sandbox("sb-1", "im-1", config) for _ in range(2)))
    again = await place.node.snapshot_sandbox("sb-1", "im-1", config)
    assert first == second == again
    assert first.config == config
    assert len(place.engine.called("commit")) == 1
    await place.node.start_container("sb-2", spec(image=first.digest))
    with pytest.raises(FailedPrecondition):
        await place.node.remove_image("im-1")
    await place.node.remove_sandbox("sb-2")
    await place.node.remove_image("im-1")
    await place.node.remove_image("im-1")
    assert names(place) == set()
    for image in (first.digest, "im-1"):
        with pytest.raises(ImageNotFound):
            await place.node.start_container("sb-3", spec(image=image))


async def test_what_fails_leaves_nothing_and_is_tried_again(place: Machine) -> None:
    with pytest.raises(NotFound):
        await place.node.snapshot_sandbox("sb-1", "im-1", None)
    await place.node.start_container("sb-1", spec())
    place.engine.inject(EngineBroken("commit"))
    with pytest.raises(Internal):
        await place.node.snapshot_sandbox("sb-1", "im-1", None)
    assert names(place) == set()
    await place.node.snapshot_sandbox("sb-1", "im-1", None)
    assert names(place) == {"im-1"}


async def test_what_nobody_knows_goes_at_a_sweep_but_not_what_is_being_made(place: Machine) -> None:
    parts = await place.parts()
    await place.node.start_container("sb-1", spec())
    await place.node.snapshot_sandbox("sb-1", "im-1", None)
    stuck = EngineStuck("commit")
    place.engine.inject(stuck)
    taking = asyncio.create_task(place.node.snapshot_sandbox("sb-1", "im-2", None))
    await stuck.reached.wait()
    half = image_reference("test", "im-2-unfinished")
    place.engine.images.known[half] = fake_image(half)
    await parts.images.sweep(none_known)
    assert names(place) == {"im-2-unfinished"}
    removing = asyncio.create_task(place.node.remove_image("im-2"))  # waits until it is made
    await asyncio.sleep(0.01)
    assert not removing.done()
    stuck.let_go.set()
    await asyncio.gather(taking, removing)
    await parts.images.sweep(none_known)
    assert names(place) == set()
    assert "shoal/base" in place.engine.images.known
