"""What Ray's autoscaler and a cloud do: machines for actors that have no place, and idle machines taken away."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.cluster.scaling.backoff import Outcome
from tests.simulation.fleet import Fleet, Machine, MachineType, SlotActor

_SEES = 1000  # actors that wait; a controller has fewer pending at once
IDLE_S = 30.0


@dataclass(slots=True)
class Cloud:
    """`most`: machines that a region has to give, for those that have fewer than anybody asks for. `never_joins`: the
    share of launches of which nobody hears again."""

    most: dict[str, int] = field(default_factory=dict)
    never_joins: float = 0.0


@dataclass(slots=True)
class Launch:
    """A machine that was asked for. `ready_at`: when it joins; None: never."""

    type: MachineType
    id: str
    at: float
    ready_at: float | None


@dataclass(slots=True)
class Autoscaler:
    """`most`, `least`: machines of each type that there may, and should, be: what Shoal's scaling writes."""

    fleet: Fleet
    cloud: Cloud
    types: Mapping[str, MachineType]
    random: random.Random
    most: Mapping[str, int] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    launched: int = 0

    def turn(self) -> None:
        """One look, as Ray has one every five seconds."""
        for machine in list(self.fleet.machines.values()):
            if not machine.slots and not machine.actor and time.monotonic() - machine.idle_since > IDLE_S:
                del self.fleet.machines[machine.id]
        for name, number in self._missing().items():
            for _ in range(number):
                self._launch(self.types[name])

    def join(self) -> list[Machine]:
        """Has the machines that are ready join."""
        now = time.monotonic()
        ready = [launch for launch in self.launches if launch.ready_at is not None and launch.ready_at <= now]
        self.launches = [launch for launch in self.launches if launch not in ready]
        return [self.fleet.join(launch.type, launch.id) for launch in ready]

    def give_up(self, after_s: float) -> None:
        """Takes away the machines that have not joined for so long."""
        now = time.monotonic()
        self.launches = [launch for launch in self.launches if now - launch.at < after_s]

    def count(self) -> Counter[str]:
        found = Counter(machine.type.name for machine in self.fleet.machines.values())
        found.update(launch.type.name for launch in self.launches)
        return found

    def _missing(self) -> Counter[str]:
        """First fit of what waits into what is launching, then into new machines where there may be more."""
        count = self.count()
        missing: Counter[str] = Counter()
        room = [(launch.type, launch.type.size) for launch in self.launches]
        for slot in list(self.fleet.pending.values())[:_SEES]:
            for index, (kind, free) in enumerate(room):
                if _suits(kind, slot) and free.covers(slot.shape):
                    room[index] = kind, free.minus(slot.shape)
                    break
            else:
                for name, kind in self.types.items():
                    if _suits(kind, slot) and count[name] + missing[name] < self.most.get(name, 0):
                        missing[name] += 1
                        room.append((kind, kind.size.minus(slot.shape)))
                        break
        for name, least in self.least.items():
            missing[name] += max(0, min(least, self.most.get(name, 0)) - count[name] - missing[name])
        return missing

    def _launch(self, kind: MachineType) -> None:
        now = time.monotonic()
        number = len(self.outcomes) + 1
        there = sum(count for name, count in self.count().items() if self.types[name].region == kind.region)
        if there >= self.cloud.most.get(kind.region, there + 1):
            self.outcomes.append(Outcome(number, kind.name, time.time(), 0, "no_capacity", "the region has none"))
            return
        self.launched += 1
        joins = self.random.random() >= self.cloud.never_joins
        ready_at = now + kind.boot_s * self.random.uniform(0.7, 1.5) if joins else None
        self.launches.append(Launch(kind, f"{kind.region}-{self.launched}", now, ready_at))
        self.outcomes.append(Outcome(number, kind.name, time.time(), 1))


def _suits(kind: MachineType, slot: SlotActor) -> bool:
    return slot.only is None and (not slot.selector.regions or kind.region in slot.selector.regions)
