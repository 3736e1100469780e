"""How fast an image of 200 MiB gets from one node to another: fetched, verified and unpacked.

Beside it: a plain download of the same bytes from the same server into a file. Each connects anew. What they wrote
stays until the end: to make a file, ext4 looks at every inode that was freed in the last five seconds.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import shutil
import tarfile
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from shoal.actors.engines.image_store import ImageConfig
from shoal.actors.engines.oci.layers import LayerStore
from shoal.actors.node.image_transfer import ImageTransfer
from shoal.actors.objects import ObjectAccess
from shoal.cluster.objects.server import ObjectServer
from tests.bench.shoalpy import Shoal
from tests.bench.stats import Samples
from tests.layers import add_upper

ROUNDS: Final = 5
_FILE: Final = 100 << 10
_LAYERS: Final = 4
_FILES: Final = (200 << 20) // _LAYERS // _FILE
"""In each layer."""
_PLAIN: Final = "bench/plain"


def fetched(_shoal: Shoal, ready: Callable[[], None]) -> Samples:
    """The speed of a node's fetch as a multiple of that of copying the image's bytes, in turns."""
    directory = Path(tempfile.mkdtemp(prefix="shoal-bench-travel-"))
    server = ObjectServer(directory)
    try:
        access = server.ensure("127.0.0.1")
        ready()
        taken = asyncio.run(_measure(directory, access))
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)
    return Samples("×", tuple(copy_s / fetch_s for fetch_s, copy_s in taken))


async def _measure(directory: Path, access: ObjectAccess) -> list[tuple[float, float]]:
    layers, first = _node(directory / "first", access)
    archive = directory / "layer-0.tar"
    _write_archive(archive, 0)
    digest = layers.add_root_filesystem(archive, "bench", ImageConfig()).digest
    plain = archive.read_bytes()
    for number in range(1, _LAYERS):
        upper = directory / f"upper-{number}"
        _write_archive(archive, number)
        plain += archive.read_bytes()
        with tarfile.open(archive) as made:
            made.extractall(upper, filter="data")
        digest = add_upper(layers, digest, upper, ImageConfig()).digest
    await first.put(digest)
    access.connect().put(_PLAIN, plain)
    return [await _round(directory / f"round-{number}", access, digest) for number in range(ROUNDS)]


async def _round(directory: Path, access: ObjectAccess, digest: str) -> tuple[float, float]:
    _, node = _node(directory, access)
    fetch_s = await _timed(node.fetch(digest, "copy"))
    copy_s = await _timed(asyncio.to_thread(lambda: access.connect().get(_PLAIN, directory / "copy")))
    return fetch_s, copy_s


def _node(directory: Path, access: ObjectAccess) -> tuple[LayerStore, ImageTransfer]:
    directory.mkdir()
    layers = LayerStore(directory / "layers")
    layers.open()

    async def reach() -> ObjectAccess:
        return access

    async def unexpected(digest: str) -> None:
        raise AssertionError(digest)

    return layers, ImageTransfer(layers, reach, directory / "transfer", unexpected, unexpected)


async def _timed(work: Awaitable[object]) -> float:
    await asyncio.to_thread(os.sync)  # what was written before
    start = time.monotonic()
    await work
    return time.monotonic() - start


def _write_archive(archive: Path, seed: int) -> None:
    """Files that compress as those of an image do, to two fifths."""
    chance = random.Random(seed)
    with tarfile.open(archive, "w") as made:
        for number in range(_FILES):
            entry = tarfile.TarInfo(f"{seed}/{number % 50}/{number}")
            entry.size = _FILE
            noise = chance.randbytes(_FILE // 4)
            words = bytes(97 + each % 16 for each in noise)
            made.addfile(entry, io.BytesIO(noise + words + words + bytes(_FILE // 4)))
