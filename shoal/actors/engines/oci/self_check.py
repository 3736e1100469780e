"""Whether the direct engine works on this machine, found by starting a container."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from shoal.actors.engines.contract import ContainerSpec, ContainerState
from shoal.actors.engines.image_store import ImageInfo
from shoal.actors.engines.oci import processes, runtimes
from shoal.actors.engines.oci.engine import OciEngine
from shoal.actors.engines.oci.image_store import OciImageStore
from shoal.actors.engines.oci.layers import LayerStore
from shoal.model import ids
from shoal.model.errors import ShoalError

_MiB: Final = 1 << 20
_REAPED_S: Final = 8.0
_ALL_S: Final = 60.0


class _EmptyImage(LayerStore):
    """Has one image, without a layer."""

    def find(self, reference: str) -> ImageInfo | None:
        return ImageInfo(reference, f"sha256:{0:064x}")

    def lower_dirs(self, digest: str) -> tuple[Path, ...]:
        return ()

    def hold(self, digest: str, key: str, *, durable: bool = False) -> None:
        """Nobody takes it away."""


def problem(directory: Path, agent: Path) -> str | None:
    """Why containers cannot be started here; None: they can. One is started in `directory`, which leaves nothing.
    Takes a second where orphans are reaped late. Blocks."""
    if os.geteuid() != 0:
        return "it needs root"
    if runtimes.RUNC.name not in runtimes.found():
        return f"{runtimes.RUNC.program} is not on this machine"
    if not reaps_orphans():
        return "the machine's process 1 does not reap orphans: each sandbox would leave a dead process behind"
    try:
        with tempfile.TemporaryDirectory(prefix="shoal-check-", dir=directory) as top:
            asyncio.run(_start_one(Path(top), agent))
    except (ShoalError, OSError, TimeoutError) as error:
        return str(error) or type(error).__name__
    return None


def time_one(directory: Path, agent: Path) -> tuple[float, float]:
    """Seconds that a container takes to start and to go here. Leaves nothing. `ShoalError`, `OSError`, `TimeoutError`.
    Blocks."""
    with tempfile.TemporaryDirectory(prefix="check-", dir=directory) as top:
        return asyncio.run(_start_one(Path(top), agent))


async def _start_one(top: Path, agent: Path) -> tuple[float, float]:
    """Starts a container and removes it; how many seconds each took. `TimeoutError`."""
    layers = _EmptyImage(top)
    engine = OciEngine(top, layers, functools.partial(OciImageStore, layers), 1)
    run_dir = top / "run"
    run_dir.mkdir()
    (run_dir / "secret").write_bytes(bytes(32))
    async with asyncio.timeout(_ALL_S):
        await engine.open()
        try:
            spec = ContainerSpec(
                key=ids.new_container_key(),
                image="shoal/check",
                agent=agent,
                run_dir=run_dir,
                cpu=0.5,
                memory=64 * _MiB,
                pids=64,
            )
            began = time.perf_counter()
            container = await engine.start(spec)
            runs = time.perf_counter()
            try:
                assert container.state is ContainerState.RUNNING
            finally:
                await engine.remove(spec.key)
            return runs - began, time.perf_counter() - runs
        finally:
            await engine.close()


@functools.cache
def reaps_orphans() -> bool:
    """Whether the dead process of a parent that has gone is taken away: a container's first process becomes one. Tried
    once in each process: some machines take seconds."""
    parent = ["/bin/sh", "-c", "sleep 0.01 >/dev/null 2>&1 & echo $!"]
    said = subprocess.run(parent, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
    orphan = processes.ref(int(said))
    deadline = time.monotonic() + _REAPED_S
    while orphan.pid and processes.ref(orphan.pid) == orphan:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
