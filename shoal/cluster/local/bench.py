"""`shoal doctor --bench`: how quick this machine is at what sandboxes need, beside what is usual, and what to change.

Nothing is left of it. The usual figures are of small virtual machines with an SSD; the bounds leave room for noise.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoal.actors.engines.oci import runtimes, self_check
from shoal.images.binaries import agent_binary
from shoal.model.errors import ShoalError
from shoal.model.settings import Settings
from shoal.model.spec import MIB

_TIMES = 20
_STARTS = 5
_EXECS = 50


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure. `value`: None where it could not be taken, `detail` says why then; `bound`: beyond that it is worse
    than usual (below, where `more` is better); `remedy`: what to change then."""

    name: str
    value: float | None
    unit: str
    usual: float
    bound: float
    remedy: str
    detail: str = ""
    more: bool = False

    @property
    def ok(self) -> bool:
        return self.value is not None and (self.value >= self.bound if self.more else self.value <= self.bound)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "ok": self.ok}


def measures(settings: Settings) -> Iterator[Measure]:
    """Each as soon as it is taken. Blocks, for some seconds in all."""
    yield _processor()
    yield _fork()
    place = settings.state_dir if settings.state_dir.is_dir() else Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix="shoal-bench-", dir=place) as top:
        yield _sync(Path(top))
        yield _write(Path(top))
        yield _overlay(Path(top))
    yield from _containers(settings)


def _processor() -> Measure:
    data, digest = bytes(MIB), hashlib.blake2b()
    began = time.perf_counter()
    for _ in range(64):
        digest.update(data)
    speed = 64 / (time.perf_counter() - began)
    return Measure(
        "one core (BLAKE2b)",
        speed,
        "MiB/s",
        800,
        300,
        "the core is slow, or others use it: `shoal top --nodes`",
        more=True,
    )


def _fork() -> Measure:
    def once() -> None:
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)

    return Measure(
        "fork, exec, wait", _middle_ms(once), "ms", 0.7, 3.0, "cores are busy, or the machine is virtual within another"
    )


def _sync(top: Path) -> Measure:
    file = os.open(top / "sync", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def once() -> None:
        os.pwrite(file, bytes(4096), 0)
        os.fsync(file)

    try:
        value = _middle_ms(once)
    finally:
        os.close(file)
    remedy = "each create waits for the store: put `state_dir` on a local SSD, or the store on PostgreSQL (`store.url`)"
    return Measure("disk: write 4 KiB, fsync", value, "ms", 1.5, 10.0, remedy)


def _write(top: Path) -> Measure:
    block, began = os.urandom(MIB), time.perf_counter()
    with (top / "write").open("wb") as file:
        for _ in range(128):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    speed = 128 / (time.perf_counter() - began)
    remedy = "images unpack and snapshots are stored at this speed: use a faster disk for `state_dir`"
    return Measure("disk: write 128 MiB", speed, "MiB/s", 500, 100, remedy, more=True)


def _overlay(top: Path) -> Measure:
    name, remedy = (
        "overlay: mount, unmount",
        "the kernel lacks overlayfs, or `state_dir` is on a file system it refuses",
    )
    for each in ("lower", "upper", "work", "merged"):
        (top / each).mkdir()
    options = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"

    def once() -> None:
        for command in (
            ["mount", "-t", "overlay", "overlay", "-o", options, f"{top}/merged"],
            ["umount", f"{top}/merged"],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=10)

    try:
        return Measure(name, _middle_ms(once), "ms", 8.0, 40.0, remedy)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        return Measure(name, None, "ms", 8.0, 40.0, remedy, said.decode("utf-8", "replace").strip()[:200] or str(error))


def _containers(settings: Settings) -> Iterator[Measure]:
    start, end = "container: start (runc)", "container: remove"
    remedy = "starts share cores and disk: lower `node.start_limit`, or keep sandboxes ready (`shoal pool create`)"
    removal = "removals wait for the kernel: fewer at once, or another kernel (5.10 or newer)"
    problem = None
    if os.geteuid() != 0:
        problem = "it needs root"
    elif runtimes.RUNC.name not in runtimes.found():
        problem = "runc is not on this machine"
    times: list[tuple[float, float]] = []
    if problem is None:
        place = settings.run_dir if settings.run_dir.is_dir() else None
        with tempfile.TemporaryDirectory(prefix="shoal-b-", dir=place) as top:
            try:
                agent = settings.agent or agent_binary()
                times = [self_check.time_one(Path(top), agent) for _ in range(_STARTS)]
            except (ShoalError, OSError, TimeoutError) as error:
                problem = str(error) or type(error).__name__
    if problem is not None:
        yield Measure(start, None, "ms", 45, 150, "shoal doctor", problem)
        return
    yield Measure(start, statistics.median(began for began, _ in times) * 1000, "ms", 45, 150, remedy)
    yield Measure(end, statistics.median(ended for _, ended in times) * 1000, "ms", 40, 200, removal)


async def cluster_measures() -> list[Measure]:
    """A create and an exec in the cluster that runs here, through a sandbox of its own."""
    from shoal.client.sandbox import Sandbox

    creates: list[float] = []
    runs: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        sandbox = await Sandbox.create.aio(tags={"shoal": "doctor"}, timeout=120)
        creates.append(time.perf_counter() - began)
        try:
            await sandbox.run.aio(["true"])
            for _ in range(_EXECS):
                began = time.perf_counter()
                result = await sandbox.run.aio(["true"])
                runs.append(max(0.0, time.perf_counter() - began - result.duration))
        finally:
            await asyncio.shield(sandbox.terminate.aio())
    return [
        Measure(
            "sandbox: create",
            statistics.median(creates) * 1000,
            "ms",
            90,
            1000,
            "`shoal profile SANDBOX` shows the step that takes long; pools keep sandboxes ready",
        ),
        Measure(
            "sandbox: exec, beside its command",
            statistics.median(runs) * 1000,
            "ms",
            1.5,
            10,
            "cores are busy; a program inside the cluster takes the shortest way",
        ),
    ]


def _middle_ms(once: Callable[[], None]) -> float:
    times = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        once()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000
