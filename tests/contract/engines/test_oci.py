"""What only the direct engine promises: whoever is killed at any step leaves nothing, and the next knows all."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.actors.engines.contract import ContainerState, EngineEvent, EventKind
from shoal.actors.engines.disks import Disks, disks
from shoal.actors.engines.oci import OciEngine, containers, filters, runtimes, writable
from shoal.actors.engines.oci.layers import LayerStore
from shoal.actors.engines.oci.records import ProcessRef, Records, Stage
from shoal.actors.engines.oci.watch import Watch
from shoal.actors.engines.oci.writable import Writable
from shoal.model.errors import QuotaExceeded, Unavailable
from tests.contract.engines.labs import MiB, OciLab, opened

pytestmark = [pytest.mark.anyio, pytest.mark.engine("oci")]

STEPS: tuple[tuple[Any, str], ...] = (
    (Records, "put"),
    (LayerStore, "hold"),
    (writable, "make_disk"),
    (Writable, "prepare"),
    (runtimes, "write_config"),
    (Writable, "mount"),
    (runtimes, "run"),
    (Writable, "unmount"),
    (filters, "wait_applied"),
    (Watch, "add"),
)


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
async def oci_lab(tmp_path: Path, anyio_backend: str) -> Any:
    lab = OciLab(tmp_path, Disks(tmp_path / "disks"))
    async with opened(lab):
        yield lab


@asynccontextmanager
async def reopened(lab: OciLab) -> Any:
    """An engine as after the death of the process that had the lab's."""
    engine = lab.another(Disks(lab.run_dir / "disks"))
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


def spec(lab: OciLab) -> Any:
    made = lab.spec(disk=64 * MiB)
    return lab.spec(key=made.key, disk=64 * MiB, disk_dir=lab.run_dir / "d" / made.key)


def broken(real: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    """A step that its process does not survive: killed before it, or right after."""

    @functools.wraps(real)
    def step(*arguments: Any, **options: Any) -> None:
        if after:
            real(*arguments, **options)
        raise Killed

    return step


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_whoever_starts_is_killed_at_any_step_and_nothing_is_left(
    oci_lab: OciLab, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    lab = oci_lab
    for owner, name in STEPS:
        await one_kill(lab, monkeypatch, owner, name, after)


async def one_kill(lab: OciLab, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool) -> None:
    assert lab.engine._containers is not None
    monkeypatch.setattr(lab.engine._containers, "maker", ProcessRef(2**22, 1))
    asked = spec(lab)
    with monkeypatch.context() as patch:
        patch.setattr(containers.Containers, "_undo", lambda *_: None)
        patch.setattr(owner, name, broken(getattr(owner, name), after=after))
        with pytest.raises(Killed):
            await lab.engine.start(asked)
    async with reopened(lab) as engine:
        for container in await engine.list(lab.labels):  # it was complete: its node decides what becomes of it
            assert lab.engine._containers.records.get(container.key).stage is Stage.MADE  # type: ignore[union-attr]
            assert container.state is ContainerState.RUNNING
            await engine.remove(container.key)
        assert await lab.remains() == [], (name, after)
    await disks_gone(lab)


async def disks_gone(lab: OciLab) -> None:
    """They are unmounted after the removal."""
    async with asyncio.timeout(10):
        while list((lab.run_dir / "d").glob("*")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_step_that_fails_leaves_nothing(oci_lab: OciLab, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for owner, name in STEPS[1:]:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fails if name != "unmount" else broken(getattr(owner, name), after=True))
            with pytest.raises((Killed, QuotaExceeded, Unavailable)):
                await oci_lab.engine.start(spec(oci_lab))
        if name == "unmount":  # it fails for the undo as well: the next try, or sweep, finds it
            for container in await oci_lab.engine.list(oci_lab.labels):
                await oci_lab.engine.remove(container.key)
        assert await oci_lab.remains() == [], name


PROGRAM = """
import asyncio, sys
from pathlib import Path
from tests.contract.engines.labs import OciLab
async def main():
    lab = OciLab(Path(sys.argv[1]))
    lab.top.rmdir()
    lab.top = Path(sys.argv[2])
    lab.engine = lab.another()
    await lab.engine.open()
    print('open', flush=True)
    await asyncio.gather(*(lab.engine.start(lab.spec(key=key)) for key in sys.argv[3:]))
    print('started', flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("after_s", [0.02, 0.1, None])
async def test_a_real_kill_in_the_middle_of_starts(oci_lab: OciLab, after_s: float | None) -> None:
    keys = [oci_lab.spec().key for _ in range(3)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(oci_lab.run_dir), str(oci_lab.top), *keys, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"open\n"
    if after_s is None:
        assert await process.stdout.readline() == b"started\n"
    else:
        await asyncio.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    async with reopened(oci_lab) as engine:
        found = await engine.list({})
        assert {each.key for each in found} <= set(keys)
        if after_s is None:
            assert {each.state for each in found} == {ContainerState.RUNNING}
            assert len(found) == 3
            await ends_are_told_to_the_next(engine, keys[0])
        for each in found:
            await engine.remove(each.key)
    assert await oci_lab.remains() == []


async def ends_are_told_to_the_next(engine: OciEngine, key: str) -> None:
    stream = engine.events({})
    os.kill((await engine.get(key)).pid, signal.SIGKILL)
    told = await asyncio.wait_for(anext(stream), 10)
    assert (told.kind, told.key) == (EventKind.EXITED, key)
    assert isinstance(told, EngineEvent)


async def test_half_a_removal_is_finished_by_the_next(oci_lab: OciLab, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spec(oci_lab)
    kept = await oci_lab.engine.start(oci_lab.spec(key=asked.key, disk=asked.disk, disk_dir=asked.disk_dir, keep=True))
    with monkeypatch.context() as patch:
        patch.setattr(LayerStore, "let_go", broken(LayerStore.let_go, after=False))
        with pytest.raises(Killed):
            await oci_lab.engine.remove(kept.key)
    async with reopened(oci_lab) as engine:
        assert await engine.list({}) == []
    assert await oci_lab.remains() == []


async def test_runtimes_keep_their_state_in_memory_as_soon_as_nothing_is_on_the_disk(tmp_path: Path) -> None:
    lab = OciLab(tmp_path)
    earlier = lab.state / "c-of-an-earlier-version"
    earlier.mkdir(parents=True)
    async with opened(lab):
        assert not lab.state.is_mount()
        earlier.rmdir()
        async with reopened(lab) as engine:
            assert lab.state.is_mount()
            started = await engine.start(lab.spec())
            assert [file.name for file in lab.state.iterdir()] == [started.key]
            await engine.close()
            assert lab.state.is_mount()  # something runs
        await lab.engine.remove(started.key)
    assert not lab.top.exists()


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_thousand_containers_come_and_go_and_nothing_grows(oci_lab: OciLab) -> None:
    async def cycle() -> None:
        made = await oci_lab.engine.start(spec(oci_lab))
        await oci_lab.engine.remove(made.key)

    await asyncio.gather(*(cycle() for _ in range(20)))
    await disks_gone(oci_lab)
    before, memory = await settled(oci_lab), resident()
    for _ in range(125):
        await asyncio.gather(*(cycle() for _ in range(8)))
    await disks_gone(oci_lab)
    deadline = time.monotonic() + 60  # the kernel takes namespaces and groups apart a little later
    while (after := counts(oci_lab)) != before and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    assert after == before
    assert resident() < memory + 32 * MiB


async def settled(lab: OciLab) -> dict[str, int]:
    """Its counts once they stand: disks are made ahead after a start, each held by a descriptor."""
    before = None
    while (now := counts(lab)) != before:
        before = now
        await asyncio.sleep(2.0)
    return now


def counts(lab: OciLab) -> dict[str, int]:
    """What each container takes of this process and of the machine, as far as it is this lab's."""
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": sum(not thread.name.startswith("shoal-unmount") for thread in threading.enumerate()),
        "mounts": sum(str(lab.run_dir) in line for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        "groups": sum(path.name in lab.keys for path in Path("/sys/fs/cgroup").glob("*/shoal/c-*")),
        "files": sum(1 for _ in lab.top.rglob("*")) + sum(1 for _ in (lab.run_dir / "d").glob("*")),
    }


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


_HOLDS_DISKS = """
import sys, time
from pathlib import Path
from shoal.actors.engines.disks import Disks, disks

disks, top = Disks(Path(sys.argv[1], "disks")), Path(sys.argv[1], "d")
for number in range(2):  # the second one was made ahead
    disks.make(top / f"c-{number}", 64 << 20)
    time.sleep(1.0)
print("made", flush=True)
time.sleep(600)
"""


def test_disks_that_were_made_ahead_go_with_their_process(tmp_path: Path) -> None:
    def devices() -> int:
        files = (file.read_text() for file in Path("/sys/block").glob("loop*/loop/backing_file"))
        return sum(str(tmp_path) in file for file in files)

    command = [sys.executable, "-c", _HOLDS_DISKS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "made\n"
            assert devices() > 2
        finally:
            process.kill()
    try:
        deadline = time.monotonic() + 30
        while devices() != 2:  # those that have a place stay, for whoever comes after a crash
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        disks.sweep(tmp_path / "d", keep=tuple)
        assert disks.wait_until_gone(tmp_path / "d")
