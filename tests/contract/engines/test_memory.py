"""Images with the memory of a container, of which others go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.actors.engines.contract import Ability, ContainerState
from shoal.actors.engines.oci.records import ProcessRef, Records
from shoal.model.errors import FailedPrecondition
from tests.contract.engines.labs import RunscLab, opened

pytestmark = [pytest.mark.anyio, pytest.mark.engine, pytest.mark.long]


@pytest.fixture
async def lab(tmp_path: Path, anyio_backend: str) -> AsyncIterator[RunscLab]:
    lab = RunscLab(tmp_path)
    async with opened(lab):
        yield lab


async def test_two_go_on_with_the_memory_and_the_files_of_a_third(lab: RunscLab) -> None:
    assert Ability.CHECKPOINT in lab.engine.abilities
    first = await lab.start()
    assert (await lab.run(first, "sh", "-c", "echo memory > /dev/shm/a; echo file > /a; echo gone > /dev/shm/b"))[
        0
    ] == 0
    image = await lab.engine.checkpoint(first.key, "test/memory")
    assert (await lab.run(first, "sh", "-c", "rm /dev/shm/b; cat /dev/shm/a")) == (0, "memory\n"), "it goes on"
    others = await asyncio.gather(*(lab.start(image=image.digest) for _ in range(2)))
    for other in others:
        assert other.state is ContainerState.RUNNING
        assert await lab.run(other, "cat", "/dev/shm/a", "/a", "/dev/shm/b") == (0, "memory\nfile\ngone\n")
    files = await lab.engine.images.commit(others[0].key)
    fresh = await lab.start(image=files.digest)
    assert await lab.run(fresh, "cat", "/a") == (0, "file\n")
    assert (await lab.run(fresh, "cat", "/dev/shm/a"))[0] == 1, "it has the files alone"
    for key in (first.key, fresh.key, *(other.key for other in others)):
        await lab.engine.remove(key)
    memories = lab.top / "oci" / "memory"
    assert len(list(memories.iterdir())) == 1
    await lab.engine.images.remove("test/memory")
    assert list(memories.iterdir()) == []


async def test_one_that_shares_the_machines_kernel_gives_no_memory(lab: RunscLab) -> None:
    container = await lab.start(runtime="runc")
    with pytest.raises(FailedPrecondition) as caught:
        await lab.engine.checkpoint(container.key)
    assert caught.value.state == "no_memory"


async def test_a_suspended_one_goes_on_from_its_own_memory_until_that_is_let_go(lab: RunscLab) -> None:
    container = await lab.start(keep=True)
    key, place = container.key, lab.top / "oci" / "containers" / container.key
    await lab.run(container, "sh", "-c", "echo memory > /dev/shm/a; echo file > /a")
    await lab.engine.suspend(key)
    await lab.engine.suspend(key)
    assert (await lab.engine.get(key)).pid, "it stands still"
    await lab.engine.forget_memory(key)
    assert await lab.run(container, "cat", "/dev/shm/a", "/a") == (0, "memory\nfile\n"), "it went on"
    await lab.engine.suspend(key)
    for _ in range(2):
        await lab.engine.stop(key)
        again = await lab.engine.restart(key)
        assert (again.state, again.resumed) == (ContainerState.RUNNING, True)
        assert await lab.run(again, "cat", "/dev/shm/a", "/a") == (0, "memory\nfile\n")
    await lab.engine.stop(key)
    pages = next(file for file in (place / "memory").iterdir() if "pages.img" in file.name)
    whole = pages.read_bytes()
    pages.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FailedPrecondition) as caught:
        await lab.engine.restart(key)
    assert caught.value.state == "not_resumed"
    assert (await lab.engine.get(key)).state is ContainerState.EXITED
    pages.write_bytes(whole)
    assert (await lab.engine.restart(key)).resumed
    await lab.engine.stop(key)
    await lab.engine.forget_memory(key)
    assert not (await lab.engine.restart(key)).resumed
    assert sorted(file.name for file in place.glob("memory*")) == []
    await lab.engine.remove(key)


async def test_a_suspend_and_a_wake_that_a_kill_cut_short_leave_the_memory_alone(lab: RunscLab) -> None:
    container = await lab.start(keep=True)
    key = container.key
    await lab.run(container, "sh", "-c", "echo memory > /dev/shm/a")
    await lab.engine.suspend(key)
    for _ in ("suspend", "wake"):
        records = Records(lab.top / "oci" / "containers")
        record = records.get(key)
        assert record is not None
        records.put(record.but(maker=ProcessRef(1 << 22, 1)))  # which has been killed since
        other = lab.another()
        await other.open()
        try:
            assert (await other.get(key)).state is ContainerState.EXITED
            again = await other.restart(key)
            assert again.resumed
            assert await lab.run(again, "cat", "/dev/shm/a") == (0, "memory\n")
        finally:
            await other.close()
    await lab.engine.remove(key)
