"""A day of a cluster in simulated time: traffic with bursts, lost machines, a lost region, no capacity, and scaling.

The controller, placement, pools and scaling decisions are the real ones; machines, Ray and the cloud are pretend.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shoal.actors.controller.ledger import starts_at_once
from shoal.actors.controller.parts import Parts
from shoal.cluster.store import open_store
from shoal.model import tasks
from shoal.model.access import INSIDE
from shoal.model.errors import ShoalError
from shoal.model.info import SandboxInfo
from shoal.model.settings import Settings
from shoal.model.spec import Resources, SandboxSpec
from shoal.model.states import Reason
from tests.simulation.autoscaler import Autoscaler, Cloud
from tests.simulation.controller import open_controller
from tests.simulation.fleet import Fleet, MachineType
from tests.simulation.scaling import JOIN_S, Scaling, limits

REGIONS = ("eu-west-1", "us-east-1", "ap-south-1")
CORES = 4.0
CPU = 0.125
PER_NODE = int(CORES / CPU)
RAY_S = 5.0
_SAMPLE_S = 10.0
_DEADLINE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens. `live`: sandboxes that live in the quiet and in the busy part of a day; `life_s`: how long one
    lives on the average; `bursts`: (hour, creates at once); `losses`: (hour, machines lost at once); `lost_region`:
    (hour, region), which gives no machine for the hour after; `idle_s`: when an empty machine is taken away."""

    name: str
    hours: float
    live: tuple[int, int]
    life_s: float
    bursts: tuple[tuple[float, int], ...] = ()
    losses: tuple[tuple[float, int], ...] = ()
    lost_region: tuple[float, str] | None = None
    most_nodes: int = 110
    idle_s: float = 300.0


DAY = Scenario(
    "a day",
    hours=24.0,
    live=(50, 600),
    life_s=5400.0,
    bursts=((3.0, 1000), (9.5, 2000), (15.0, 500), (20.0, 2000)),
    losses=((5.0, 2), (13.0, 3)),
    lost_region=(17.0, "us-east-1"),
)
HOUR = Scenario(
    "ten thousand",
    hours=1.0,
    live=(10_000, 10_000),
    life_s=7200.0,
    bursts=((0.6, 300),),
    losses=((0.7, 5),),
    lost_region=(0.8, "eu-west-1"),
    most_nodes=160,
)


@dataclass
class Figures:
    """What is measured, and the curves for the drawing: one sample each ten simulated seconds."""

    delays: list[float] = field(default_factory=list)
    over: list[float] = field(default_factory=list)
    ended_by_scaling: int = 0
    node_lost: int = 0
    creates: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    at: list[float] = field(default_factory=list)
    live: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    nodes: dict[str, list[int]] = field(default_factory=lambda: {region: [] for region in REGIONS})
    launching: list[int] = field(default_factory=list)
    needed: list[float] = field(default_factory=list)


class Run:
    """One scenario."""

    def __init__(self, scenario: Scenario, settings: Settings, seed: int) -> None:
        self.scenario = scenario
        self.figures = Figures()
        self._settings = settings
        self._random = random.Random(seed)
        self._fleet = Fleet()
        self._kinds = [MachineType(f"{region}.m", region, CORES, 16 * 1024) for region in REGIONS]
        self._cloud = Cloud(never_joins=0.02)
        self._autoscaler = Autoscaler(self._fleet, self._cloud, {k.name: k for k in self._kinds}, self._random)
        self._scaling = Scaling(self._autoscaler, limits(self._kinds, scenario.most_nodes, scenario.idle_s))
        self._lives: set[asyncio.Task[None]] = set()
        self._lost: set[str] = set()
        self._waiting = 0
        self._starts: dict[str, list[float]] = {}

    async def run(self, say: Callable[[str], None]) -> Figures:
        controller = await open_controller(self._fleet, self._settings, open_store(self._settings.to_dict()))
        loops = [
            tasks.repeat(RAY_S, self._ray, "ray"),
            tasks.repeat(1.0, lambda: self._scale(controller), "scale"),
            tasks.repeat(_SAMPLE_S, self._sample, "sample"),
        ]
        events = self._events()
        begun, told = time.monotonic(), 0.0
        while (elapsed := time.monotonic() - begun) < self.scenario.hours * 3600:
            while events and events[0][0] <= elapsed:
                await events.pop(0)[1](controller)
            for _ in range(self._due(elapsed)):
                self._begin(controller)
            if elapsed - told >= 3600 * self.scenario.hours / 8:
                told = elapsed
                there = f"{self._live():,} live, {len(self._fleet.machines)} machines"
                say(f"{self.scenario.name}: hour {elapsed / 3600:.1f}, {there}")
            await asyncio.sleep(1.0)
        await tasks.stop(*loops)
        await controller.stop()
        self.figures.delays = self._delays()
        return self.figures

    # -- traffic ------------------------------------------------------------------------------------

    def _due(self, elapsed: float) -> int:
        """Creates of this second: a Poisson process around what keeps the target alive."""
        low, high = self.scenario.live
        share = 0.5 - 0.5 * math.cos(2 * math.pi * elapsed / 86400)
        rate = (low + (high - low) * share) / self.scenario.life_s
        if low == high and elapsed < 600:  # it fills within ten minutes
            rate = high / 600
        limit, product, count = math.exp(-rate), self._random.random(), 0
        while product > limit:
            product *= self._random.random()
            count += 1
        return count

    def _begin(self, controller: Parts, life_s: float | None = None) -> None:
        life_s = self._random.expovariate(1 / self.scenario.life_s) if life_s is None else life_s
        task = asyncio.get_running_loop().create_task(self._life(controller, life_s))
        self._lives.add(task)
        task.add_done_callback(self._lives.discard)

    async def _life(self, controller: Parts, life_s: float) -> None:
        regions = self._random.choice(((), (REGIONS[0],), REGIONS, (REGIONS[1], REGIONS[0])))
        spec = SandboxSpec(
            "shoal/base", Resources(CPU, 1.0, 128, 1024, 8192, 512), timeout=7 * 86400.0, regions=tuple(regions)
        )
        self.figures.creates += 1
        self._waiting += 1
        try:
            info, _ = await controller.sandboxes.create(spec, _DEADLINE_S, True, INSIDE)
        except ShoalError as error:
            self.figures.failed[error.code] = self.figures.failed.get(error.code, 0) + 1
            return
        finally:
            self._waiting -= 1
        self._note_start(info)
        await asyncio.sleep(life_s)
        info = await controller.sandboxes.terminate(info.id, INSIDE)
        if info.reason is Reason.NODE_LOST:
            self.figures.node_lost += 1
            self.figures.ended_by_scaling += info.node_id not in self._lost
        elif info.reason is not Reason.TERMINATED:
            self.figures.ended_by_scaling += 1

    def _note_start(self, info: SandboxInfo) -> None:
        """Of those that waited for a machine: when they ran, from its joining on."""
        machine = self._fleet.machines.get(info.node_id or "")
        joined_at = 0.0 if machine is None else machine.joined_at + time.time() - time.monotonic()
        if machine is not None and info.started_at is not None and info.created_at < joined_at:
            after = info.started_at - joined_at
            if after < 60.0:  # else it waited for room that somebody left there
                self._starts.setdefault(machine.id, []).append(after)

    def _delays(self) -> list[float]:
        """The delays of those that waited for a machine, beyond what their starts take: a machine starts so many at
        once, and the next when those run."""
        at_once, start_s = starts_at_once(CORES), self._fleet.worker_s + self._fleet.start_s
        return [
            round(max(0.0, after - (number // at_once + 1) * start_s), 3)  # unix time in a float has that much
            for starts in self._starts.values()
            for number, after in enumerate(sorted(starts))
        ]

    # -- what happens -------------------------------------------------------------------------------

    def _events(self) -> list[tuple[float, Callable[[Parts], object]]]:
        scenario = self.scenario
        found: list[tuple[float, Callable[[Parts], object]]] = []
        found += [(hour * 3600, lambda controller, n=n: self._burst(controller, n)) for hour, n in scenario.bursts]
        found += [(hour * 3600, lambda controller, n=n: self._lose(n)) for hour, n in scenario.losses]
        if scenario.lost_region is not None:
            hour, region = scenario.lost_region
            found.append((hour * 3600, lambda controller: self._lose_region(region)))
            found.append(((hour + 1) * 3600, lambda controller: self._give_back(region)))
        return sorted(found, key=lambda pair: pair[0])

    async def _burst(self, controller: Parts, count: int) -> None:
        for _ in range(count):
            self._begin(controller, life_s=self._random.uniform(600, 1800))

    async def _lose(self, count: int) -> None:
        for machine in self._random.sample(list(self._fleet.machines.values()), min(count, len(self._fleet.machines))):
            self._lost.add(machine.id)
            self._fleet.lose(machine)

    async def _lose_region(self, region: str) -> None:
        self._cloud.most[region] = 0
        for machine in [m for m in self._fleet.machines.values() if m.type.region == region]:
            self._lost.add(machine.id)
            self._fleet.lose(machine)

    async def _give_back(self, region: str) -> None:
        del self._cloud.most[region]

    async def _ray(self) -> None:
        self._autoscaler.turn()
        self._autoscaler.give_up(JOIN_S)

    async def _scale(self, controller: Parts) -> None:
        self._autoscaler.join()
        await self._scaling.turn(controller)

    # -- curves -------------------------------------------------------------------------------------

    async def _sample(self) -> None:
        figures, fleet = self.figures, self._fleet
        figures.at.append(time.monotonic() / 3600)
        live = self._live()
        figures.live.append(live)
        figures.waiting.append(self._waiting)
        for region in REGIONS:
            figures.nodes[region].append(sum(m.type.region == region for m in fleet.machines.values()))
        figures.launching.append(len(self._autoscaler.launches))
        figures.needed.append((live + self._waiting) / PER_NODE)

    def _live(self) -> int:
        return sum(slot.sandbox_id is not None for slot in self._fleet.slots.values())


def over_provisioned(figures: Figures, bursts: Sequence[tuple[float, int]]) -> float:
    """The worst burst: how many machines more than needed there were at its height, as a part of those needed."""
    worst = 0.0
    for hour, _ in bursts:
        during = [index for index, at in enumerate(figures.at) if hour <= at <= hour + 0.25]
        if not during:
            continue
        needed = max(figures.needed[index] for index in during)
        there = max(sum(of[index] for of in figures.nodes.values()) + figures.launching[index] for index in during)
        before = sum(of[during[0] - 1] for of in figures.nodes.values()) if during[0] else 0
        worst = max(worst, (there - max(before, math.ceil(needed))) / math.ceil(needed))
    return worst
