"""What 10,000 living sandboxes and 300 creates a second cost the controller: real time, the real store (SQLite)."""

from __future__ import annotations

import asyncio
import itertools
import resource
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from shoal.actors.controller.parts import Parts
from shoal.cluster.store import open_store
from shoal.model.access import INSIDE
from shoal.model.info import Listing
from shoal.model.settings import Settings
from shoal.model.spec import Resources, SandboxSpec
from tests.simulation.controller import open_controller
from tests.simulation.fleet import Fleet, MachineType

LIVE = 10_000
NODES = 300
RATE = 300.0
SECONDS = 20.0
PATIENCE_S = 300.0
"""A create's deadline, the longest there is: the run is to go to its end on a busy machine, too."""
REGIONS = ("eu-west-1", "us-east-1", "ap-south-1")
_AT_ONCE = 300
_PAGE = 100


@dataclass
class Load:
    """One run. Durations in seconds."""

    live: int = LIVE
    nodes: int = NODES
    rate: float = RATE
    seconds: float = SECONDS
    creates: list[float] = field(default_factory=list)
    pages: list[float] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)
    _ids: deque[str] = field(default_factory=deque)

    async def run(self, say: Callable[[str], None]) -> dict[str, float]:
        with TemporaryDirectory(prefix="shoal-load-") as directory:
            settings = _settings(directory)
            fleet = Fleet(worker_s=0.0, start_s=0.0, end_s=0.0)  # what is left is the controller's
            for number in range(self.nodes):
                fleet.join(MachineType("m", REGIONS[number % len(REGIONS)]))
            controller = await open_controller(fleet, settings, open_store(settings.to_dict()))
            say(f"{self.live:,} sandboxes on {self.nodes} machines")
            await self._fill(controller)
            say(f"{self.rate:g} creates a second for {self.seconds:g} s")
            before, processor = time.perf_counter(), time.process_time()
            done = await self._churn(controller)
            spent, worked = time.perf_counter() - before, time.process_time() - processor
            say("a restart")
            before = time.perf_counter()
            again = await open_controller(fleet, settings, open_store(settings.to_dict()))
            restart = time.perf_counter() - before
            # A caller of `terminate` is told once the request is on record: the end itself may not be yet.
            found = sum(record.ended_by is None for record in again.registry.live())
            assert found == self.live, f"{found} of {self.live} sandboxes are known after the restart"
            await controller.stop()
            await again.stop()
        return {
            "creates_per_s": done / spent,
            "create_p50_ms": quantile(self.creates, 0.5) * 1000,
            "create_p99_ms": quantile(self.creates, 0.99) * 1000,
            "list_page_p99_ms": quantile(self.pages, 0.99) * 1000,
            "loop_stall_p99_ms": quantile(self.stalls, 0.99) * 1000,
            "cpu_ms_per_life": worked / done * 1000,
            "restart_s": restart,
            "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    async def _fill(self, controller: Parts) -> None:
        turns = asyncio.Semaphore(_AT_ONCE)

        async def one() -> None:
            async with turns:
                info, _ = await controller.sandboxes.create(SPEC, PATIENCE_S, True, INSIDE)
                self._ids.append(info.id)

        await asyncio.gather(*(one() for _ in range(self.live)))

    async def _churn(self, controller: Parts) -> int:
        """Each of them replaces the oldest one."""
        lives: set[asyncio.Task[None]] = set()
        begun = time.perf_counter()
        async with _beside(self._read_pages(controller)), _beside(self._feel_stalls()):
            for number in itertools.count():
                wait = begun + number / self.rate - time.perf_counter()
                if number >= self.seconds * self.rate:
                    break
                if wait > 0:
                    await asyncio.sleep(wait)
                life = asyncio.get_running_loop().create_task(self._life(controller))
                lives.add(life)
                life.add_done_callback(lives.discard)
            await asyncio.gather(*lives)
        return len(self.creates)

    async def _life(self, controller: Parts) -> None:
        before = time.perf_counter()
        info, _ = await controller.sandboxes.create(SPEC, PATIENCE_S, True, INSIDE)
        self.creates.append(time.perf_counter() - before)
        self._ids.append(info.id)
        await controller.sandboxes.terminate(self._ids.popleft(), INSIDE)

    async def _read_pages(self, controller: Parts) -> None:
        listing = Listing(environment=SPEC.environment, limit=_PAGE)
        while True:
            before = time.perf_counter()
            await controller.sandboxes.select(listing, INSIDE)
            self.pages.append(time.perf_counter() - before)
            await asyncio.sleep(0.1)

    async def _feel_stalls(self) -> None:
        """How much later than due the loop gets to anybody."""
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.01)
            self.stalls.append(time.perf_counter() - before - 0.01)


SPEC = SandboxSpec("shoal/base", Resources(0.125, 1.0, 128, 1024, 8192, 512), timeout=86400.0)


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def _settings(directory: str) -> Settings:
    return Settings.model_validate({"state_dir": Path(directory), "run_dir": Path(directory)})


@asynccontextmanager
async def _beside(work: object) -> AsyncIterator[None]:
    task = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
    try:
        yield
    finally:
        task.cancel()
