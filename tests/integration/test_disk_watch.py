"""The disk watch on a real engine reports the container that writes too much, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.actors.node.disk_watch import DiskWatch
from tests.contract.engines.labs import DockerLab, MiB, opened

pytestmark = [pytest.mark.anyio, pytest.mark.engine]

# Directories nested deeper than any path may be, links out of the tree, and a sparse file.
HOSTILE = """
import os
os.makedirs("/h"); os.chdir("/h")
os.symlink("/proc", "proc"); os.symlink("..", "up")
open("sparse", "wb").truncate(1 << 40)
for _ in range(1500):
    os.mkdir("d" * 50); os.chdir("d" * 50)
"""


@pytest.fixture
async def docker_lab(tmp_path: Path, anyio_backend: str) -> AsyncIterator[DockerLab]:
    lab = DockerLab(tmp_path)
    async with opened(lab):
        yield lab


async def test_the_one_that_writes_too_much_is_told(docker_lab: DockerLab) -> None:
    told: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
    watch = DiskWatch(docker_lab.engine, 0.05, lambda key, used: told.put_nowait((key, used)))
    running = asyncio.create_task(watch.run())
    try:
        quiet, hostile, writer = [await docker_lab.start() for _ in range(3)]
        for container in (quiet, hostile, writer):
            watch.add(container.key, 32 * MiB)
        code, said = await docker_lab.run(hostile, "python3", "-c", HOSTILE)
        assert code == 0, said
        await docker_lab.write(writer, 16 * MiB)
        await asyncio.sleep(0.5)
        assert told.empty()
        await docker_lab.write(writer, 20 * MiB)
        key, used = await asyncio.wait_for(told.get(), 30)
        assert key == writer.key
        assert used > 32 * MiB
        await asyncio.sleep(0.3)
        assert told.empty()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
