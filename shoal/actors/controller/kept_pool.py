"""A pool as it is kept: what is ready of it, what is being made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shoal.actors.controller.placement import Request
from shoal.actors.controller.pools import Bounds, Demand, Kept, ReadyShape, lacking
from shoal.actors.controller.slot import Slot
from shoal.model.capacity import WaitingSandboxes


@dataclass(slots=True, eq=False)
class ReadySlot:
    """A slot that is ready. `since`: by the clock; `watch`: notices when it is not ready any more."""

    slot: Slot
    since: float
    watch: asyncio.Task[None] | None = None


@dataclass(slots=True, eq=False)
class Making:
    """One that is being made. `taken`: a create has taken it before it was ready."""

    slot: Slot
    task: asyncio.Task[None] | None = None
    taken: bool = False


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """Figures of a pool for the metrics. `label`: environment/name; empty: those of shapes that were created lately."""

    label: str
    ready: int = 0
    making: int = 0
    taken: int = 0
    missed: int = 0


@dataclass(slots=True, eq=False)
class KeptPool:
    """`label`: its name for the slots, empty for an automatic one. `request`: what it asks of a node; `room`: what its
    environment's quota leaves it. `over`: nobody wants it any more. `problem`: why there are fewer than there should
    be; `lacking_since`: since when there are fewer than the least."""

    shape: ReadyShape
    request: Request
    bounds: Bounds
    label: str = ""
    demand: Demand = field(default_factory=Demand)
    ready: dict[str, ReadySlot] = field(default_factory=dict)
    making: list[Making] = field(default_factory=list)
    taken: int = 0
    missed: int = 0
    problem: str | None = None
    over: bool = False
    lacking_since: float | None = None
    room: Callable[[], int | None] = lambda: None

    def kept(self, blocked: bool = False) -> Kept:
        """The same for `pools.py`."""
        ready = [(slot_id, one.since) for slot_id, one in self.ready.items()]
        return Kept(self.bounds, self.demand, ready, len(self.making), self.room(), blocked)

    def drop(self, slot_id: str) -> Slot:
        """Takes out a slot that is ready."""
        one = self.ready.pop(slot_id)
        if one.watch is not None:
            one.watch.cancel()
        return one.slot

    def forget(self, making: Making) -> None:
        """Idempotent."""
        if making in self.making:
            self.making.remove(making)

    def note_lacking(self, now: float) -> None:
        """Notes whether it has the least that it keeps."""
        lacks = lacking(self.kept()) > 0
        self.lacking_since = (self.lacking_since or now) if lacks else None

    def as_waiting(self, now: float) -> WaitingSandboxes | None:
        """What it lacks of the least that it keeps, as if sandboxes waited."""
        if self.lacking_since is None:
            return None
        return self.request.as_waiting(lacking(self.kept()), now - self.lacking_since)


def figures_of(pools: Iterable[KeptPool], gone: PoolFigures) -> list[PoolFigures]:
    """Figures by label. `gone`: of automatic pools that are no more."""
    found = {gone.label: gone}
    for pool in pools:
        so_far = found.get(pool.label, PoolFigures(pool.label))
        found[pool.label] = PoolFigures(
            pool.label,
            so_far.ready + len(pool.ready),
            so_far.making + len(pool.making),
            so_far.taken + pool.taken,
            so_far.missed + pool.missed,
        )
    return list(found.values())
