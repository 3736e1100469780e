"""Keeps sandboxes ready: carries out what `pools.py` decides. A create that matches takes one, and says so by that.

A ready slot is a sandbox actor that has prepared a container. It is in the hands of one pool, declared or automatic,
whose name it remembers for the next controller. Nothing of it is in the store: what this controller does not find
again, its node sweeps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from shoal.actors.controller.kept_pool import KeptPool, PoolFigures, figures_of
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.placement import Request
from shoal.actors.controller.pools import Bounds, LateShapes, ReadyShape, plan_all, shape_of
from shoal.actors.controller.ready_maker import Call, ReadyMaker
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.slot_maker import SlotMaker
from shoal.actors.controller.slots import SlotPool
from shoal.model.capacity import WaitingSandboxes
from shoal.model.settings import PoolSettings
from shoal.model.spec import SandboxSpec

TURN_S = 1.0
_SOON_S = 0.2
"""A turn comes so long after a take: those of a burst are answered together, and what was taken begins undisturbed."""

_GIVES_WAY_S = 10.0

AT_ONCE = 4
"""How many are made at once, for each node: as many containers as it starts at once."""

NO_ROOM = "no room for more; end sandboxes, or add nodes"


@dataclass(slots=True)
class ReadySlots:
    """All that is kept ready. `call`: how actors are called; `may_make`: whether what an earlier controller left is
    known by now; `starts`: how many sandboxes are being started; `has_memory`: whether an image is a
    checkpoint. Its processes go on in what is kept ready, so that is done for declared pools only."""

    slots: SlotPool
    slot_maker: SlotMaker
    nodes: Nodes
    settings: PoolSettings
    call: Call
    clock: Callable[[], float] = time.monotonic
    may_make: Callable[[], bool] = lambda: True
    starts: Callable[[], int] = lambda: 0
    has_memory: Callable[[str], bool] = lambda image: False
    _late: LateShapes = field(init=False)
    _maker: ReadyMaker = field(init=False)
    _declared: dict[tuple[str, ReadyShape], list[KeptPool]] = field(default_factory=dict)
    _automatic: dict[ReadyShape, KeptPool] = field(default_factory=dict)
    _gone: PoolFigures = field(default_factory=lambda: PoolFigures(""))  # of automatic pools that are no more
    _giving_way_since: float | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._late = LateShapes(self.settings)
        self._maker = ReadyMaker(self.slots, self.slot_maker, self.nodes, self.call, self._wake.set, self.clock)

    # -- pools --------------------------------------------------------------------------------------

    def declare(self, environment: str, label: str, spec: SandboxSpec, least: int, most: int) -> KeptPool:
        """A pool that somebody asked for."""
        pool = KeptPool(shape_of(spec), self.slots.stock.request(spec), self._bounds(least, most), label)
        self._declared.setdefault((environment, pool.shape), []).append(pool)
        self._wake.set()
        return pool

    def resize(self, pool: KeptPool, least: int, most: int) -> None:
        pool.bounds = self._bounds(least, most)
        self._wake.set()

    def retire(self, environment: str, pool: KeptPool) -> None:
        """The pool is gone: what is ready of it ends."""
        pools = self._declared.get((environment, pool.shape), [])
        if pool in pools:
            pools.remove(pool)
            if not pools:
                del self._declared[environment, pool.shape]
        self._end_pool(pool)

    def forget_image(self, image: str) -> None:
        """The image is about to go: what was made ready for creates of it, other than by a declared pool, ends."""
        self._late.forget(image)
        self._wake.set()

    # -- taking -------------------------------------------------------------------------------------

    def take(self, spec: SandboxSpec, request: Request) -> Slot | None:
        """A ready slot for a new sandbox, if there is one. `request`: what it asks of its node."""
        if spec.persistent:  # its disk is its own, from its first start on
            return None
        now = self.clock()
        pools = self._serving(spec, request)
        shape = shape_of(spec)
        if not any(pool.label for pool in pools) and not self.has_memory(shape.container.image):
            self._late.note(shape, now)
        for pool in pools:
            if not pool.label:
                pool.request = request  # the next ones are made where it would have been of use
        found = next((pool for pool in pools if self._find(pool, request) is not None), None)
        asked = found or next(iter(pools), None)
        if asked is None:
            return None
        asked.demand.note_take(now)
        self._wake.set()
        if found is None:
            asked.missed += 1
            return None
        return self._hand_out(found, request, now)

    def serves(self, spec: SandboxSpec) -> bool:
        """Whether `take` would find one."""
        request = self.slots.stock.request(spec)
        return any(self._find(pool, request) is not None for pool in self._serving(spec, request))

    def take_unfinished(self, spec: SandboxSpec, request: Request) -> Slot | None:
        """A slot that is being made ready for such a sandbox: the start joins what was begun."""
        for pool in self._serving(spec, request):
            for making in pool.making:
                placed = making.slot.node_id is not None and self.slots.stock.admits(request, making.slot)
                if placed and not making.taken:
                    making.slot.idle_since = self.clock()
                    return self._maker.hand_out(making)
        return None

    def adopt(self, slot: Slot, label: str) -> None:
        """Takes back a slot of an earlier controller that has prepared a container, or was about to."""
        assert slot.prepared is not None
        shape = ReadyShape(slot.shape, slot.prepared)
        declared = (pool for pools in self._declared.values() for pool in pools)
        pool = next((pool for pool in declared if pool.label == label and pool.shape == shape), None)
        if pool is None and not label and not self.has_memory(slot.prepared.image):
            self._late.restore(shape, self.clock())
            self._keep_automatic()
            pool = self._automatic.get(shape)
        if pool is None:
            self._maker.end(slot)
        else:
            self._maker.make(pool, slot)

    # -- for callers that wait ----------------------------------------------------------------------

    def spare(self) -> Sequence[Slot]:
        """Those that may end for callers that wait, longest ready first."""
        ready = [one for pool in self._pools() for one in pool.ready.values()]
        return [one.slot for one in sorted(ready, key=lambda one: one.since)]

    def give_up(self, slot: Slot) -> None:
        """Ends one of `spare`, for a caller that waits."""
        for pool in self._pools():
            if slot.id in pool.ready:
                self._maker.end(pool.drop(slot.id))

    def lacking(self) -> Iterator[WaitingSandboxes]:
        """What declared pools lack of the least that they keep: demand for machines, as if sandboxes waited."""
        now = self.clock()
        found = (pool.as_waiting(now) for pool in self._pools() if pool.label)
        yield from (waiting for waiting in found if waiting is not None)

    def node_ids(self) -> Iterator[str]:
        """The node of each slot that is ready for a declared pool, or is being made so."""
        for pool in self._pools():
            slots = [*(one.slot for one in pool.ready.values()), *(making.slot for making in pool.making)]
            yield from (slot.node_id for slot in slots if pool.label and slot.node_id is not None)

    def figures(self) -> list[PoolFigures]:
        """What there is of each pool, those of shapes created lately together."""
        return figures_of(self._pools(), self._gone)

    def starting(self) -> list[Slot]:
        """The slots in which one is being made."""
        return [making.slot for pool in self._pools() for making in pool.making]

    # -- the loop -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Turn after turn: soon after each take, and at least every second."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(TURN_S):
                    await self._wake.wait()
                    await asyncio.sleep(_SOON_S)
            self._wake.clear()
            await self.turn()

    async def turn(self) -> None:
        """Makes and ends what there is to make and to end."""
        self._keep_automatic()
        self._leave_cordoned()
        pools = self._pools()
        for pool in pools:  # machines come and go
            image, stock = pool.shape.container.image, self.slots.stock
            pool.request = replace(pool.request, nodes=stock.nodes_with(image), near=stock.nodes_near(image))
        blocked = [self.slots.has_waiting_beside(pool.request) for pool in pools]
        for pool, is_blocked in zip(pools, blocked, strict=True):
            if is_blocked:
                self._withdraw_unplaced(pool)
            pool.note_lacking(self.clock())
        at_once = AT_ONCE * max(1, len(self.nodes.handles()))
        held = not self.may_make() or self._gives_way(at_once)
        kept = {number: pool.kept(held or blocked[number]) for number, pool in enumerate(pools)}
        for number, plan in plan_all(kept, self.clock(), at_once).items():
            pool = pools[number]
            for slot_id in plan.end:
                self._maker.end_surplus(pool, pool.drop(slot_id))
            for _ in range(plan.make):
                slot = self.slots.withdraw_idle(pool.request) or self.slots.stock.create_spare(pool.request)
                if slot is None:
                    pool.problem = None if self.slots.stock.room_for(pool.request) else NO_ROOM
                else:
                    self._maker.make(pool, slot)

    def _gives_way(self, at_once: int) -> bool:
        """Whether so many sandboxes are being started that nothing is made ready beside; not for long in a row."""
        now = self.clock()
        if self.starts() < at_once:
            self._giving_way_since = None
            return False
        self._giving_way_since = self._giving_way_since or now
        return now - self._giving_way_since < _GIVES_WAY_S

    def close(self) -> None:
        """Ends every slot that is ready, or being made so."""
        for pool in self._pools():
            self._end_pool(pool)
        self._maker.close()

    # -- inside -------------------------------------------------------------------------------------

    def _pools(self) -> list[KeptPool]:
        return [*(pool for pools in self._declared.values() for pool in pools), *self._automatic.values()]

    def _serving(self, spec: SandboxSpec, request: Request) -> list[KeptPool]:
        """The pools that a create may take from: the declared ones first."""
        shape = shape_of(spec)
        declared = self._declared.get((spec.environment, shape), ())
        automatic = self._automatic.get(shape)
        return [*(pool for pool in declared if pool.request.meets(request)), *([automatic] if automatic else [])]

    def _bounds(self, least: int, most: int) -> Bounds:
        return Bounds(least, most, self.settings.linger, self.settings.max_age)

    def _keep_automatic(self) -> None:
        wanted = self._late.wanted(self.clock())
        for shape in wanted:
            if shape not in self._automatic:
                most = max(self.settings.ready, self.settings.most_ready)
                request = Request(shape.slot, runtime=shape.container.runtime)
                self._automatic[shape] = KeptPool(shape, request, self._bounds(self.settings.ready, most))
        for shape in self._automatic.keys() - set(wanted):
            pool = self._automatic.pop(shape)
            taken, missed = self._gone.taken + pool.taken, self._gone.missed + pool.missed
            self._gone = PoolFigures("", taken=taken, missed=missed)
            self._end_pool(pool)

    def _leave_cordoned(self) -> None:
        """Ends what is ready, or being made, on nodes where no new sandbox may start."""
        cordoned = self.nodes.cordoned()
        if cordoned:
            for pool in self._pools():
                for slot_id, one in list(pool.ready.items()):
                    if one.slot.node_id in cordoned:
                        self._maker.end(pool.drop(slot_id))
                for making in list(pool.making):
                    if making.slot.node_id in cordoned:
                        self._maker.withdraw(making)

    def _find(self, pool: KeptPool, request: Request) -> str | None:
        """The one that has been ready longest, where the sandbox may start."""
        cordoned = self.nodes.cordoned()
        ready = (
            slot_id
            for slot_id, one in pool.ready.items()
            if one.slot.node_id not in cordoned and self.slots.stock.admits(request, one.slot)
        )
        return next(ready, None)

    def _hand_out(self, pool: KeptPool, request: Request, now: float) -> Slot | None:
        found = self._find(pool, request)
        if found is None:
            return None
        pool.taken += 1
        slot = pool.drop(found)
        slot.idle_since = now
        return slot

    def _end_pool(self, pool: KeptPool) -> None:
        pool.over = True
        for slot_id in list(pool.ready):
            self._maker.end_surplus(pool, pool.drop(slot_id))
        for making in list(pool.making):
            self._maker.withdraw(making)

    def _withdraw_unplaced(self, pool: KeptPool) -> None:
        """Callers wait for room: slots that Ray has not placed yet would take it from them."""
        for making in list(pool.making):
            if making.slot.node_id is None:
                self._maker.withdraw(making)
