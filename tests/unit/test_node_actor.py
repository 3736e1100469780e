"""The node actor: what fails once is made good later, and a start that fails leaves this process as it was."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator

import pytest

from shoal.actors.engines.fake import EngineBroken, EngineDown
from shoal.model.errors import NotFound, ShoalError, Unavailable
from tests.processes import relay_pid
from tests.unit.builders import spec
from tests.unit.node_world import Machine, machine

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

WITHIN_S = 20.0
"""How long a test waits for what is to happen: only one that fails waits so long."""

SHAPE = spec().container_shape


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    async with machine(monkeypatch) as made:
        yield made


async def test_what_is_kept_warm_for_nobody_goes_though_one_removal_fails(place: Machine) -> None:
    parts = await place.parts()
    warm = [await parts.containers.start(SHAPE, None) for _ in range(3)]
    gone = [asyncio.create_task(parts.containers.watch(record.key)) for record in warm]
    place.engine.inject(EngineBroken("remove"))
    for record in warm:
        parts.warm.put(record.shape, record.key)
    place.node._refill.set()
    await asyncio.wait_for(asyncio.gather(*gone[1:]), WITHIN_S)
    await place.node._sweep(parts)
    assert await asyncio.wait_for(gone[0], WITHIN_S)
    assert parts.containers.records == place.engine.containers == {}


async def test_closing_takes_away_what_it_can_and_tells_what_is_left(
    place: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = await place.parts()
    kept, _ = [await parts.containers.start(SHAPE, None) for _ in range(2)]
    remove, refused = place.engine.remove, {kept.key}

    async def refuse(key: str) -> None:
        if key in refused:
            raise Unavailable("the engine took too long to answer")
        await remove(key)

    monkeypatch.setattr(place.engine, "remove", refuse)
    with pytest.raises(Unavailable, match=kept.key):
        await place.node.close()
    assert [*place.engine.containers] == [kept.key]
    assert place.net.attached.keys() == set(), "the network is closed"
    with pytest.raises(Unavailable):
        await parts.relay.ask({"op": "info"})
    refused.clear()


async def test_what_was_half_made_is_not_kept_warm_though_it_is_still_there(place: Machine) -> None:
    class Twice(EngineBroken):
        async def happen(self) -> None:
            place.engine.inject(EngineBroken("remove"))
            await super().happen()

    parts = await place.parts()
    half, warm = [await parts.containers.start(SHAPE, None) for _ in range(2)]
    await parts.containers.files.put(half.but(ready=False))
    await place.restart()
    place.fault = Twice("remove")
    parts = await place.parts()
    assert set(parts.containers.records) == {half.key, warm.key}
    assert parts.warm.keys == {warm.key}


async def test_a_start_after_one_that_could_not_be_undone_leaves_one_container(place: Machine) -> None:
    parts = await place.parts()
    place.net.broken = True
    place.engine.inject(EngineBroken("remove"))
    with pytest.raises(Unavailable, match="no more addresses"):
        await place.node.start_container("sb-1", spec())
    place.net.broken = False
    started = await place.node.start_container("sb-1", spec())
    assert list(place.engine.containers) == list(parts.containers.records) == [started.key]
    assert (await place.node.container_of("sb-1")).key == started.key


async def test_a_container_that_is_half_removed_is_not_given_again(place: Machine) -> None:
    parts = await place.parts()
    first = await place.node.start_container("sb-1", spec())
    place.engine.inject(EngineBroken("remove"))
    with pytest.raises(ShoalError):
        await place.node.remove_container(first.key)
    with pytest.raises(NotFound):
        await place.node.container_of("sb-1")
    second = await place.node.start_container("sb-1", spec())
    assert list(place.engine.containers) == list(parts.containers.records) == [second.key] != [first.key]


async def test_a_node_that_fails_to_open_holds_nothing_and_finds_its_relay_again(
    place: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_RUN_DIR", str(place.run_dir))
    held: list[tuple[int, int]] = []
    relays = set()
    gc.collect()  # what earlier tests left may hold descriptors
    for _ in range(4):
        place.fault = EngineDown("list")
        with pytest.raises(Unavailable, match="engine"):
            await place.node.info()
        relays.add(await asyncio.to_thread(relay_pid))
        held.append((len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))))
    assert not any(engine._open for engine in place.engines)
    assert len(relays) == 1
    assert None not in relays
    assert all(tasks <= held[1][0] and descriptors <= held[1][1] for tasks, descriptors in held[2:]), held
    await place.node.info()
    assert await asyncio.to_thread(relay_pid) in relays, "it was not ended: it carries what runs"
