"""The conformance suite: what the contract promises, of every engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shoal.actors.engines.contract import Ability, ContainerState, EngineEvent, EventKind
from shoal.model import ids
from shoal.model.errors import FailedPrecondition, ImageNotFound, InvalidRequest, NotFound, Unavailable
from tests.contract.engines.labs import Lab, MiB

pytestmark = pytest.mark.anyio

ABSENT = "127.0.0.1:1/no/such"
"""An image whose registry refuses to be reached."""


@asynccontextmanager
async def listening(lab: Lab) -> AsyncIterator[asyncio.Queue[EngineEvent]]:
    """The events of the lab's containers while the block runs."""
    queue: asyncio.Queue[EngineEvent] = asyncio.Queue()
    stream = lab.engine.events(lab.labels)

    async def listen() -> None:
        async for event in stream:
            queue.put_nowait(event)

    task = asyncio.create_task(listen())
    try:
        yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def next_event(queue: asyncio.Queue[EngineEvent]) -> EngineEvent:
    return await asyncio.wait_for(queue.get(), 10)


async def test_opening_tells_what_the_engine_can(lab: Lab) -> None:
    assert lab.engine.runtimes
    assert all(isinstance(ability, Ability) for ability in lab.engine.abilities)
    await lab.engine.open()


async def test_a_closed_engine_says_so(lab: Lab) -> None:
    await lab.engine.close()
    await lab.engine.close()
    with pytest.raises(FailedPrecondition) as caught:
        await lab.engine.list({})
    assert caught.value.state == "closed"
    with pytest.raises(FailedPrecondition) as caught:
        lab.engine.events({})
    assert caught.value.state == "closed"


async def test_an_image_on_the_node_is_described(lab: Lab) -> None:
    image = await lab.engine.images.get(lab.image)
    assert image.reference == lab.image
    assert image.digest.startswith("sha256:")
    assert image.size > 0
    assert image.config.workdir.startswith("/")


async def test_an_absent_image_is_not_found_where_it_may_not_be_pulled(lab: Lab) -> None:
    with pytest.raises(ImageNotFound):
        await lab.engine.images.get(ABSENT, pull=False)


async def test_an_image_that_nobody_gives_is_refused_with_the_reason(lab: Lab) -> None:
    with pytest.raises((ImageNotFound, Unavailable)):
        await lab.engine.images.get(ABSENT)


async def test_what_is_no_reference_is_an_invalid_request(lab: Lab) -> None:
    for reference in ("", "Upper/Case", "with space", "nul\0", "x" * 10_000, "../../info", "a:b:c"):
        with pytest.raises(InvalidRequest) as caught:
            await lab.engine.images.get(reference)
        assert caught.value.field == "image", reference


async def test_a_started_container_runs(lab: Lab) -> None:
    container = await lab.start()
    assert container.state is ContainerState.RUNNING
    assert container.pid > 1
    assert container.exit_code is None
    assert container.created_at > 1.6e9
    assert lab.labels.items() <= dict(container.labels).items()
    assert await lab.engine.get(container.key) == container
    assert await lab.engine.list(lab.labels) == [container]


async def test_a_limit_that_cannot_be_kept_is_refused(lab: Lab) -> None:
    limits: list[tuple[str, Any]] = [
        ("memory", 1 * MiB),
        ("memory", -1),
        ("cpu", 0.0),
        ("pids", 0),
        ("runtime", "no-such"),
        ("key", "../etc"),
    ]
    for field, value in limits:
        with pytest.raises(InvalidRequest) as caught:
            await lab.start(**{field: value})
        assert caught.value.field == field
    assert await lab.remains() == []


async def test_a_start_without_its_image_leaves_nothing(lab: Lab) -> None:
    with pytest.raises(ImageNotFound):
        await lab.start(image=ABSENT)
    assert await lab.remains() == []


async def test_a_key_that_is_taken_is_refused_and_its_container_lives_on(lab: Lab) -> None:
    first = await lab.start()
    with pytest.raises(FailedPrecondition):
        await lab.start(key=first.key)
    assert (await lab.engine.get(first.key)).state is ContainerState.RUNNING


@pytest.mark.parametrize("after", [0.0, 0.02, 0.13])
async def test_a_cancelled_start_leaves_nothing(lab: Lab, after: float) -> None:
    starting = asyncio.create_task(lab.start())
    await asyncio.sleep(after)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    if starting.cancelled():
        assert await lab.remains() == []


async def test_a_container_that_is_kept_is_stopped_and_started_again_with_what_it_wrote(lab: Lab) -> None:
    container = await lab.start(keep=True)
    await lab.write(container, MiB)
    await lab.engine.stop(container.key)
    await lab.engine.stop(container.key)
    stopped = await lab.engine.get(container.key)
    assert (stopped.state, stopped.pid) == (ContainerState.EXITED, 0)
    assert [each.key for each in await lab.engine.list(lab.labels)] == [container.key]
    again = await lab.engine.restart(container.key)
    assert again.state is ContainerState.RUNNING
    assert again.pid not in (0, container.pid)
    assert await lab.engine.restart(container.key) == again
    assert await lab.engine.disk_usage(container.key, limit=1 << 30) >= MiB
    await lab.kill(again)
    await lab.engine.remove(container.key)
    assert await lab.remains() == []


async def test_a_stopped_container_is_removed(lab: Lab) -> None:
    container = await lab.start(keep=True)
    await lab.engine.stop(container.key)
    await lab.engine.remove(container.key)
    for work in (lab.engine.stop, lab.engine.restart):
        with pytest.raises(NotFound):
            await work(container.key)


async def test_many_start_side_by_side(lab: Lab) -> None:
    containers = await asyncio.gather(*(lab.start() for _ in range(5)))
    assert len({container.pid for container in containers}) == 5
    assert {c.key for c in await lab.engine.list(lab.labels)} == {c.key for c in containers}
    await asyncio.gather(*(lab.engine.remove(container.key) for container in containers))
    assert await lab.remains() == []


async def test_one_that_is_killed_is_only_to_be_removed(lab: Lab) -> None:
    container = await lab.start()
    if Ability.KILL not in lab.engine.abilities:
        with pytest.raises(FailedPrecondition):
            await lab.engine.kill(container.key)
        return
    async with listening(lab) as events:
        for files_closed in (False, True):
            await lab.engine.kill(container.key, files_closed=files_closed)
        assert (await lab.engine.get(container.key)).state is ContainerState.EXITED
        with pytest.raises(FailedPrecondition):
            await lab.engine.usage(container.key)
        await lab.engine.remove(container.key)
        await asyncio.sleep(0.1)
        assert events.empty()
    assert await lab.remains() == []
    with pytest.raises(NotFound):
        await lab.engine.kill(container.key)


async def test_removing_is_idempotent_and_final(lab: Lab) -> None:
    container = await lab.start()
    await asyncio.gather(*(lab.engine.remove(container.key) for _ in range(3)))
    assert await lab.remains() == []
    await lab.engine.remove(container.key)
    with pytest.raises(NotFound):
        await lab.engine.get(container.key)
    assert await lab.engine.list(lab.labels) == []


async def test_what_is_not_there_is_not_found(lab: Lab) -> None:
    for method in (lab.engine.get, lab.engine.usage, lab.engine.pause, lab.engine.resume):
        with pytest.raises(NotFound):
            await method(ids.new_container_key())
    with pytest.raises(NotFound):
        await lab.engine.disk_usage(ids.new_container_key(), limit=MiB)


async def test_a_list_holds_what_carries_all_labels(lab: Lab) -> None:
    one = await lab.start(labels={**lab.labels, "shoal.colour": "red"})
    other = await lab.start(labels={**lab.labels, "shoal.colour": "blue"})
    assert [c.key for c in await lab.engine.list({**lab.labels, "shoal.colour": "red"})] == [one.key]
    assert {c.key for c in await lab.engine.list(lab.labels)} == {one.key, other.key}
    assert await lab.engine.list({**lab.labels, "shoal.colour": "green"}) == []


async def test_one_that_dies_is_told_and_keeps_its_exit_code(lab: Lab) -> None:
    async with listening(lab) as events:
        container = await lab.start()
        await lab.kill(container)
        assert await next_event(events) == EngineEvent(EventKind.EXITED, container.key, 137)
    ended = await lab.engine.get(container.key)
    assert (ended.state, ended.exit_code, ended.pid, ended.out_of_memory) == (ContainerState.EXITED, 137, 0, False)
    assert await lab.engine.list(lab.labels) == [ended]
    for method in (lab.engine.usage, lab.engine.pause):
        with pytest.raises(FailedPrecondition) as caught:
            await method(container.key)
        assert caught.value.state == "exited"


async def test_memory_beyond_the_limit_is_told(lab: Lab) -> None:
    async with listening(lab) as events:
        container = await lab.start(memory=64 * MiB)
        await lab.exhaust_memory(container)
        assert await next_event(events) == EngineEvent(EventKind.OUT_OF_MEMORY, container.key)
    assert (await lab.engine.get(container.key)).out_of_memory


async def test_events_are_only_of_those_who_carry_the_labels(lab: Lab) -> None:
    async with listening(lab) as events:
        stranger = await lab.start(labels={"shoal.stranger": lab.run_dir.name})
        mine = await lab.start()
        await lab.engine.remove(stranger.key)
        await lab.kill(mine)
        assert (await next_event(events)).key == mine.key
        assert events.empty()


async def test_closing_the_engine_ends_its_events(lab: Lab) -> None:
    stream = lab.engine.events(lab.labels)

    async def listen() -> list[EngineEvent]:
        return [event async for event in stream]

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0.1)
    await lab.engine.close()
    assert await asyncio.wait_for(listening, 20) == []  # at once; but a machine may stand still for seconds


async def test_pausing_and_resuming_are_idempotent(lab: Lab) -> None:
    container = await lab.start()
    for verb, state in ((lab.engine.pause, ContainerState.PAUSED), (lab.engine.resume, ContainerState.RUNNING)):
        await verb(container.key)
        await verb(container.key)
        seen = await lab.engine.get(container.key)
        assert (seen.state, seen.pid) == (state, container.pid)
        assert await lab.engine.list(lab.labels) == [seen]


async def test_a_paused_one_is_removed_like_any(lab: Lab) -> None:
    container = await lab.start()
    await lab.engine.pause(container.key)
    await asyncio.wait_for(lab.engine.remove(container.key), 10)
    assert await lab.remains() == []


async def test_usage_grows_with_what_is_done(lab: Lab) -> None:
    container = await lab.start()
    before = await lab.engine.usage(container.key)
    assert 0 < before.memory <= 256 * MiB
    assert before.pids >= 1
    await lab.burn(container)
    assert (await lab.engine.usage(container.key)).cpu_s >= before.cpu_s + 0.2


async def test_disk_usage_counts_what_was_written(lab: Lab) -> None:
    container = await lab.start()
    before = await lab.engine.disk_usage(container.key, limit=1024 * MiB)
    assert before < MiB
    await lab.write(container, 8 * MiB)
    used = await lab.engine.disk_usage(container.key, limit=1024 * MiB)
    assert 8 * MiB <= used - before < 9 * MiB
    assert await lab.engine.disk_usage(container.key, limit=MiB) > MiB


async def test_what_is_no_key_is_refused(lab: Lab) -> None:
    engine = lab.engine
    for method in (engine.get, engine.usage, engine.remove, engine.pause, engine.resume):
        for key in ("", "no key", "a/b", "c-UP", "c-", "c-" + "x" * 33):
            with pytest.raises(InvalidRequest) as caught:
                await method(key)
            assert caught.value.field == "key", (method, key)
