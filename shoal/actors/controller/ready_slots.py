"""Keeps sandboxes ready: carries out what `pools.py` decides. A create that matches takes one, and says so by that.

A ready slot is a sandbox actor that has prepared a container. It is in the hands of one pool, declared or automatic,
whose name it remembers for the next controller. Nothing of it is in the store: what this controller does not find
again, its node sweeps.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.placement import Request, request_for
from shoal.actors.controller.pools import Bounds, Demand, Kept, LateShapes, ReadyShape, lacking, plan_all, shape_of
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.slot_maker import SlotMaker
from shoal.actors.controller.slots import SlotPool
from shoal.actors.handles import is_gone
from shoal.model import tasks
from shoal.model.capacity import WaitingSandboxes
from shoal.model.errors import ShoalError, Unavailable
from shoal.model.settings import PoolSettings
from shoal.model.spec import SandboxSpec

log = logging.getLogger("shoal.pools")

TURN_S = 1.0
_SOON_S = 0.2
"""A turn comes so long after a take: those of a burst are answered together, and what was taken begins undisturbed."""

_PREPARE_S = 120.0
_RELEASE_S = 30.0
_RETRY_S = 1.0

AT_ONCE = 4
"""How many are made at once, for each node: as many containers as it starts at once."""

NO_ROOM = "no room for more; end sandboxes, or add nodes"


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


@dataclass(slots=True, eq=False)
class KeptPool:
    """A pool as it is kept. `label`: its name for the slots, empty for an automatic one. `over`: nobody wants it any
    more. `room`: what its environment's quota leaves it. `request`: what it asks of a node."""

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

    def kept(self, blocked: bool) -> Kept:
        ready = [(slot_id, one.since) for slot_id, one in self.ready.items()]
        return Kept(self.bounds, self.demand, ready, len(self.making), self.room(), blocked)

    def forget(self, making: Making) -> None:
        if making in self.making:
            self.making.remove(making)


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """Figures of a pool for the metrics. `label`: environment/name; empty: those of shapes that were created lately."""

    label: str
    ready: int
    making: int
    taken: int
    missed: int


@dataclass(slots=True)
class ReadySlots:
    """All that is kept ready. `call`: how actors are called; `may_make`: whether what an earlier controller left is
    known by now."""

    slots: SlotPool
    maker: SlotMaker
    nodes: Nodes
    settings: PoolSettings
    call: Callable[..., Awaitable[Any]]
    clock: Callable[[], float] = time.monotonic
    may_make: Callable[[], bool] = lambda: True
    _late: LateShapes = field(init=False)
    _declared: dict[tuple[str, ReadyShape], list[KeptPool]] = field(default_factory=dict)
    _automatic: dict[ReadyShape, KeptPool] = field(default_factory=dict)
    _taken_before: int = 0  # from automatic pools that are no more
    _missed_before: int = 0
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _work: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._late = LateShapes(self.settings)

    # -- pools --------------------------------------------------------------------------------------

    def declare(self, environment: str, label: str, spec: SandboxSpec, least: int, most: int) -> KeptPool:
        """A pool that somebody asked for."""
        pool = KeptPool(shape_of(spec), request_for(spec), self._bounds(least, most), label)
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

    # -- taking -------------------------------------------------------------------------------------

    def take(self, spec: SandboxSpec) -> Slot | None:
        """A ready slot for a new sandbox, if there is one."""
        if spec.persistent:  # its disk is its own, from its first start on
            return None
        now, request = self.clock(), request_for(spec)
        pools = self._serving(spec, request)
        if not any(pool.label for pool in pools):
            self._late.note(shape_of(spec), now)
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
        request = request_for(spec)
        return any(self._find(pool, request) is not None for pool in self._serving(spec, request))

    def _serving(self, spec: SandboxSpec, request: Request) -> list[KeptPool]:
        """The pools that a create may take from: the declared ones first."""
        shape = shape_of(spec)
        declared = self._declared.get((spec.environment, shape), ())
        automatic = self._automatic.get(shape)
        return [*(pool for pool in declared if pool.request.meets(request)), *([automatic] if automatic else [])]

    def take_unfinished(self, spec: SandboxSpec) -> Slot | None:
        """A slot that is being made ready for such a sandbox: the start joins what was begun."""
        request = request_for(spec)
        for pool in self._serving(spec, request):
            for making in pool.making:
                placed = making.slot.node_id is not None and self.slots.stock.admits(request, making.slot)
                if placed and not making.taken and making.task is not None:
                    making.taken = True
                    making.task.cancel()
                    making.slot.idle_since = self.clock()
                    return making.slot
        return None

    def adopt(self, slot: Slot, label: str) -> None:
        """Takes back a slot of an earlier controller that has prepared a container, or was about to."""
        assert slot.prepared is not None
        shape = ReadyShape(slot.shape, slot.prepared)
        declared = (pool for pools in self._declared.values() for pool in pools)
        pool = next((pool for pool in declared if pool.label == label and pool.shape == shape), None)
        if pool is None and not label:
            self._late.restore(shape, self.clock())
            self._keep_automatic()
            pool = self._automatic.get(shape)
        if pool is None:
            self._end(slot)
        else:
            self._make(pool, slot)

    # -- for callers that wait ----------------------------------------------------------------------

    def spare(self) -> Sequence[Slot]:
        """Those that may end for callers that wait, longest ready first."""
        ready = [one for pool in self._pools() for one in pool.ready.values()]
        return [one.slot for one in sorted(ready, key=lambda one: one.since)]

    def give_up(self, slot: Slot) -> None:
        """Ends one of `spare`, for a caller that waits."""
        for pool in self._pools():
            if slot.id in pool.ready:
                self._drop(pool, slot.id)
                self._end(slot)

    def lacking(self) -> Iterator[WaitingSandboxes]:
        """What declared pools lack of the least that they keep: demand for machines, as if sandboxes waited."""
        now = self.clock()
        for pool in self._pools():
            if pool.label and pool.lacking_since is not None:
                shape, request = pool.shape.slot, pool.request
                yield WaitingSandboxes(
                    cpu=shape.cpu,
                    memory=shape.memory,
                    gpu=shape.gpu,
                    runtime=request.runtime,
                    regions=request.regions,
                    zone=request.zone,
                    count=lacking(pool.kept(False)),
                    oldest_s=now - pool.lacking_since,
                )

    def node_ids(self) -> Iterator[str]:
        """The node of each slot that is ready for a declared pool, or is being made so."""
        for pool in self._pools():
            slots = [*(one.slot for one in pool.ready.values()), *(making.slot for making in pool.making)]
            yield from (slot.node_id for slot in slots if pool.label and slot.node_id is not None)

    def figures(self) -> list[PoolFigures]:
        """What there is of each pool, those of shapes created lately together."""
        found = []
        for label in {pool.label for pool in self._pools()}:
            pools = [pool for pool in self._pools() if pool.label == label]
            found.append(
                PoolFigures(
                    label,
                    sum(len(pool.ready) for pool in pools),
                    sum(len(pool.making) for pool in pools),
                    sum(pool.taken for pool in pools) + (0 if label else self._taken_before),
                    sum(pool.missed for pool in pools) + (0 if label else self._missed_before),
                )
            )
        return found

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
        blocked = [self.slots.has_waiting_beside(pool.request) for pool in pools]
        for pool, is_blocked in zip(pools, blocked, strict=True):
            if is_blocked:
                self._withdraw_unplaced(pool)
        held = not self.may_make()
        kept = {number: pool.kept(held or blocked[number]) for number, pool in enumerate(pools)}
        self._note_lacking(pools)
        for number, plan in plan_all(kept, self.clock(), AT_ONCE * max(1, len(self.nodes.handles()))).items():
            pool = pools[number]
            for slot_id in plan.end:
                self._end_surplus(pool, self._drop(pool, slot_id))
            for _ in range(plan.make):
                slot = self.slots.withdraw_idle(pool.request) or self.slots.stock.create_spare(pool.request)
                if slot is None:
                    pool.problem = NO_ROOM
                else:
                    self._make(pool, slot)

    def close(self) -> None:
        """Ends every slot that is ready, or being made so."""
        for pool in self._pools():
            self._end_pool(pool)
        for task in self._work:
            task.cancel()

    # -- inside -------------------------------------------------------------------------------------

    def _pools(self) -> list[KeptPool]:
        return [*(pool for pools in self._declared.values() for pool in pools), *self._automatic.values()]

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
            self._taken_before += pool.taken
            self._missed_before += pool.missed
            self._end_pool(pool)

    def _note_lacking(self, pools: Sequence[KeptPool]) -> None:
        for pool in pools:
            lacks = lacking(pool.kept(False)) > 0
            pool.lacking_since = (pool.lacking_since or self.clock()) if lacks else None

    def _leave_cordoned(self) -> None:
        """Ends what is ready, or being made, on nodes where no new sandbox may start."""
        cordoned = self.nodes.cordoned()
        if cordoned:
            for pool in self._pools():
                for slot_id, one in list(pool.ready.items()):
                    if one.slot.node_id in cordoned:
                        self._end(self._drop(pool, slot_id))
                for making in list(pool.making):
                    if making.slot.node_id in cordoned:
                        self._withdraw(making)

    def _make(self, pool: KeptPool, slot: Slot) -> None:
        """Has a slot made ready. `slot`: a free one, or one that Ray is about to place."""
        making = Making(slot)
        pool.making.append(making)
        work = partial(self._prepare, pool, making, slot)
        making.task = self._supervise(work, "make ready", lambda _: self._end(slot))
        making.task.add_done_callback(lambda _: pool.forget(making))  # one that is cancelled may never have begun

    async def _prepare(self, pool: KeptPool, making: Making, slot: Slot) -> None:
        began = self.clock()
        try:
            if slot.node_id is None:
                await self.maker.placed(slot)
            await self.call(slot.handle, "prepare", pool.shape.container, pool.label, timeout_s=_PREPARE_S)
        except ShoalError as error:
            log.warning("pool %s: %s", pool.label or "of a shape created lately", error)
            pool.problem = error.message
            pool.demand.note_failed(self.clock())
            self.slots.stock.health.failed(slot.node_id, slot.id, pool.shape.container.image, error)
            self._end(slot)
            return
        finally:
            pool.forget(making)
        slot.prepared = pool.shape.container
        pool.problem = None
        pool.demand.note_made(self.clock() - began)
        if pool.over:
            self._end_surplus(pool, slot)
            return
        ready = pool.ready[slot.id] = ReadySlot(slot, self.clock())
        ready.watch = self._supervise(partial(self._watch, pool, slot), "watch ready slot")

    async def _watch(self, pool: KeptPool, slot: Slot) -> None:
        """Notices when a ready slot is lost, or only its container."""
        while True:
            try:
                why = await self.call(slot.handle, "unready")
            except Unavailable as error:
                if is_gone(error):
                    break
                await asyncio.sleep(_RETRY_S)
                continue
            log.warning("slot %s is not ready any more: %s", slot.id, why)
            break
        ready = pool.ready.pop(slot.id, None)
        if ready is not None:
            ready.watch = None  # this very task
            self._end(slot)
            self._wake.set()

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
        slot = self._drop(pool, found)
        slot.idle_since, slot.prepared = now, None
        return slot

    def _drop(self, pool: KeptPool, slot_id: str) -> Slot:
        ready = pool.ready.pop(slot_id)
        if ready.watch is not None:
            ready.watch.cancel()
        return ready.slot

    def _end_pool(self, pool: KeptPool) -> None:
        pool.over = True
        for slot_id in list(pool.ready):
            self._end_surplus(pool, self._drop(pool, slot_id))
        for making in list(pool.making):
            self._withdraw(making)

    def _withdraw_unplaced(self, pool: KeptPool) -> None:
        """Callers wait for room: slots that Ray has not placed yet would take it from them."""
        for making in list(pool.making):
            if making.slot.node_id is None:
                self._withdraw(making)

    def _withdraw(self, making: Making) -> None:
        if making.task is not None and not making.taken:
            making.task.cancel()
            self._end(making.slot)

    def _end_surplus(self, pool: KeptPool, slot: Slot) -> None:
        """Of a pool that somebody asked for nothing stays. Else the slot idles for the next sandbox."""
        if pool.label:
            self._end(slot)
        else:
            self._supervise(partial(self._empty, slot), "empty slot")

    async def _empty(self, slot: Slot) -> None:
        try:
            await self.call(slot.handle, "release", timeout_s=_RELEASE_S)
        except ShoalError:
            self._end(slot)
        else:
            slot.prepared = None
            self.slots.put(slot)

    def _end(self, slot: Slot) -> None:
        """Ends the slot at once, and has its node remove what it had prepared."""
        self.slots.stock.discard(slot)
        if slot.node_id is not None:
            self._supervise(partial(self._release, slot.node_id, slot.id), "release container")

    async def _release(self, node_id: str, slot_id: str) -> None:
        with suppress(ShoalError):  # then the node sweeps it
            await self.call(self.nodes.handle(node_id), "release_containers", [slot_id], timeout_s=_RELEASE_S)

    def _supervise(
        self, work: Callable[[], Awaitable[None]], name: str, failed: Callable[[Exception], None] | None = None
    ) -> asyncio.Task[None]:
        task = tasks.supervise(work, name, attempts=1, failed=failed)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task
