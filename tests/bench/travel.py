"""How fast an image of 200 MiB gets from one node to another: stored, fetched, verified and unpacked, beside a plain
download of the same bytes into a file."""

from __future__ import annotations

import asyncio
import io
import os
import random
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shoal.actors.engines.image_store import ImageConfig
from shoal.actors.engines.oci.layers import LayerStore
from shoal.actors.node.image_transfer import ImageTransfer
from shoal.actors.objects import ObjectAccess
from shoal.cluster.objects.server import ObjectServer

ROUNDS: Final = 3
_FILE: Final = 100 << 10
_FILES: Final = (200 << 20) // _FILE
_PLAIN: Final = "bench/plain"


def measure_travel(say: Callable[[str], None]) -> dict[str, float]:
    """`image_fetch`: the speed of a second node's fetch as a share of that of copying the image's bytes;
    `image_fetch_s`, `image_store_s`, `image_copy_s`: medians in seconds. In turns."""
    directory = Path(tempfile.mkdtemp(prefix="shoal-bench-travel-"))
    server = ObjectServer(directory)
    try:
        access = server.ensure("127.0.0.1")
        say("an image of 200 MiB from node to node")
        return asyncio.run(_measure(directory, access))
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


async def _measure(directory: Path, access: ObjectAccess) -> dict[str, float]:
    archive = directory / "root.tar"
    _write_archive(archive)
    layers, first = _node(directory / "first", access)
    digest = layers.add_root_filesystem(archive, "bench", ImageConfig()).digest
    store_s = await _timed(first.put(digest))
    store = access.connect()
    store.put(_PLAIN, archive)
    fetches, copies = [], []
    for number in range(ROUNDS):
        _, node = _node(directory / f"node-{number}", access)
        fetches.append(await _timed(node.fetch(digest, "copy")))
        copy = directory / f"copy-{number}"
        copies.append(await _timed(asyncio.to_thread(store.get, _PLAIN, copy)))
        copy.unlink()
        shutil.rmtree(directory / f"node-{number}")
    fetch_s, copy_s = statistics.median(fetches), statistics.median(copies)
    return {
        "image_fetch": copy_s / fetch_s,
        "image_fetch_s": fetch_s,
        "image_copy_s": copy_s,
        "image_store_s": store_s,
    }


def _node(directory: Path, access: ObjectAccess) -> tuple[LayerStore, ImageTransfer]:
    layers = LayerStore(directory / "layers")
    layers.open()

    async def reach() -> ObjectAccess:
        return access

    async def damaged(digest: str) -> None:
        raise AssertionError(digest)

    return layers, ImageTransfer(layers, reach, directory / "transfer", damaged, damaged)


async def _timed(work: object) -> float:
    os.sync()
    start = time.monotonic()
    await work  # type: ignore[misc]
    return time.monotonic() - start


def _write_archive(archive: Path) -> None:
    """Files that compress as those of an image do, to somewhat less than half."""
    chance = random.Random(7)
    with tarfile.open(archive, "w") as made:
        for number in range(_FILES):
            entry = tarfile.TarInfo(f"{number % 50}/{number}")
            entry.size = _FILE
            part = chance.randbytes(_FILE * 2 // 5)
            made.addfile(entry, io.BytesIO(part + bytes(ord("a") + each % 16 for each in part) + bytes(_FILE // 5)))
