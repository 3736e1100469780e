"""A container's disk has the size that was asked for, however code inside writes; and any tree on it can be removed."""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.actors.engines.contract import Ability, Container
from shoal.actors.engines.disks import Disks, disks, mounts
from shoal.model import ids
from tests.contract.engines.labs import DockerLab, MiB, opened

pytestmark = [pytest.mark.anyio, pytest.mark.engine]

LIMIT = 64 * MiB

EVASIONS = """
import errno, json, os

def fill(file):
    written, block = 0, b"x" * (1 << 20)
    try:
        while written < 256 << 20:
            written += os.write(file, block)
        os.fsync(file)
    except OSError as error:
        return written, errno.errorcode[error.errno]
    finally:
        os.ftruncate(file, 20)
        os.close(file)
    return written, None

def unlinked():
    file = os.open("/gone", os.O_RDWR | os.O_CREAT)
    os.unlink("/gone")
    return fill(file)

def beside(path):
    file = os.open(path, os.O_RDWR | os.O_APPEND)
    return fill(file)

def at_once():
    file = os.open("/large", os.O_RDWR | os.O_CREAT)
    os.unlink("/large")
    try:
        os.posix_fallocate(file, 0, 2 << 30)
    except OSError as error:
        return os.fstat(file).st_blocks * 512, errno.errorcode[error.errno]
    finally:
        os.close(file)
    return os.fstat(file).st_blocks * 512, None

def entries():
    made = 0
    os.mkdir("/many")
    try:
        while made < 100_000:
            os.mknod(f"/many/{made}")
            made += 1
    except OSError as error:
        return made, errno.errorcode[error.errno]
    return made, None

said = {"unlinked": unlinked(), "hosts": beside("/etc/hosts"), "hostname": beside("/etc/hostname"),
        "fallocate": at_once(), "entries": entries()}
size = os.statvfs("/")
print(json.dumps({"said": said, "size": size.f_blocks * size.f_frsize}))
"""

DEEP = """
import os
os.makedirs(b"/h/\\xff\\n"); os.chdir(b"/h/\\xff\\n")
for _ in range(20_000):
    os.mkdir("d" * 50); os.chdir("d" * 50)
open("f", "w").close()
"""


@pytest.fixture
async def lab(tmp_path: Path, anyio_backend: str) -> AsyncIterator[DockerLab]:
    async with opened(DockerLab(tmp_path, Disks(tmp_path / "disks"))) as lab:
        yield lab
    async with asyncio.timeout(30):
        while any(entry.point.is_relative_to(tmp_path) for entry in mounts.table()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def start(lab: DockerLab, disk: int = LIMIT, keep: bool = False) -> Container:
    key = ids.new_container_key()
    return await lab.start(key=key, disk=disk, disk_dir=lab.run_dir / "d" / key, keep=keep)


async def test_no_way_of_writing_goes_beyond_the_limit(lab: DockerLab) -> None:
    assert Ability.DISK_LIMIT in lab.engine.abilities
    container, other = await start(lab), await start(lab)
    code, said = await lab.run(container, "python3", "-c", EVASIONS)
    assert code == 0, said
    found = json.loads(said)
    for how, (amount, error) in found["said"].items():
        assert error == "ENOSPC", how
        assert amount < LIMIT * 1.05, how
    assert LIMIT <= found["size"] < LIMIT * 1.05
    assert await lab.run(container, "sh", "-c", "rm -r /many && echo on") == (0, "on\n")
    assert await lab.run(other, "hostname", "-i") == (0, "127.0.0.1\n")
    await lab.write(other, 32 * MiB)
    assert 32 * MiB <= await lab.engine.disk_usage(other.key, limit=1 << 40) < 34 * MiB


async def test_a_kept_disk_outlives_its_mounts_and_is_bounded_again(lab: DockerLab, tmp_path: Path) -> None:
    container = await start(lab, keep=True)
    await lab.write(container, 8 * MiB)
    await lab.engine.stop(container.key)
    assert not any(entry.point.is_relative_to(tmp_path) for entry in mounts.table())
    again = await lab.engine.restart(container.key)
    assert (await lab.run(again, "sh", "-c", "cat /written-* | wc -c"))[1].strip() == str(8 * MiB)
    # As after a crash of the machine: nothing is mounted any more, and nobody has stopped it.
    await lab.kill(again)
    while (await lab.engine.get(container.key)).pid:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    disk = disks.find(container.key)
    assert disk is not None
    disks.release(disk)
    mounts.detach(disk.point)
    again = await lab.engine.restart(container.key)
    assert json.loads((await lab.run(again, "python3", "-c", EVASIONS))[1])["said"]["unlinked"][1] == "ENOSPC"
    assert [file.name for file in (tmp_path / "disks").iterdir()] == [f"{container.key}.disk"]
    await lab.engine.remove(container.key)
    assert not [*(tmp_path / "disks").iterdir()]


async def test_a_tree_of_any_depth_can_be_removed(lab: DockerLab) -> None:
    container = await start(lab, 1024 * MiB)
    code, said = await lab.run(container, "python3", "-c", DEEP)
    assert code == 0, said
    assert await lab.engine.disk_usage(container.key, limit=1 << 40) > 20_000 * 1024
    await asyncio.wait_for(lab.engine.remove(container.key), 60)
    assert await lab.remains() == []


async def test_a_volume_of_the_image_is_on_the_disk(lab: DockerLab, tmp_path: Path) -> None:
    made = io.BytesIO()
    tarfile.open(fileobj=made, mode="w").close()
    lab.image = f"shoal-test/{ids.new_container_key()}:1"
    name, tag = lab.image.split(":")
    changes = ["VOLUME /data"]
    await asyncio.to_thread(
        lab.client.import_image_from_data, made.getvalue(), repository=name, tag=tag, changes=changes
    )
    try:
        container = await start(lab)
        seen = await asyncio.to_thread(lab.client.inspect_container, f"shoal-{container.key}")
        volume = next(Path(mount["Source"]) for mount in seen["Mounts"] if mount["Type"] == "volume")
        status = os.statvfs(f"/proc/{container.pid}/root/data")
        assert LIMIT <= status.f_blocks * status.f_frsize < LIMIT * 1.05
        await lab.engine.remove(container.key)
        assert not volume.exists()
    finally:
        await asyncio.to_thread(lab.client.remove_image, lab.image, force=True)
