"""The sandbox actors: who gets which, and which are made.

Starting a Ray worker takes half a second and 45 MB, so a free slot waits a while for the next sandbox of its shape. A
slot is made on the node that `placement.py` chooses. Where none has room, it is pending in Ray: that is the demand
which Ray's autoscaler sees.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from shoal.actors.controller.capacity import LaunchableNodes
from shoal.actors.controller.fair_share import fairest
from shoal.actors.controller.holders import SlotHolders
from shoal.actors.controller.idle_slots import IdleSlots
from shoal.actors.controller.ledger import NodeFacts, NodeLedger, NodeView
from shoal.actors.controller.placement import ANYWHERE, OnNode, Request, Selector, Wait, best_node, choose
from shoal.actors.controller.reclaim import Waiting, idle_to_end
from shoal.actors.controller.room import Amount
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.slot_maker import SlotMaker
from shoal.actors.controller.slot_queue import STARTING, Group, Making, SlotQueue, Waiter
from shoal.model import tasks
from shoal.model.capacity import WaitingSandboxes
from shoal.model.errors import DeadlineExceeded, NoCapacity, Unavailable
from shoal.model.spec import SlotShape

log = logging.getLogger("shoal.slots")

_RAY_KNOWS_S = 3.0
"""Seconds after which Ray surely counts as free what an ended slot held."""

MAX_UNPLACED = 128
MAX_UNPLACED_IN_ALL = 512
"""The most slots with one request, and in all, for which Ray looks for a node. Thousands would overload Ray."""

_MAX_STARTING = 1000
"""The most slots that start at once on nodes that were chosen for them."""

_LOOK_S = 5.0
"""Seconds after which Ray is asked what is free, though nothing has changed here."""

_STUCK_S = 30.0
"""Seconds without any slot's start after which one is sought another node: others have taken its room."""

_ATTEMPTS = 3
"""Slots in a row that may fail to start before who has waited longest is told."""


class SpareSlots(Protocol):
    """Slots that are kept ready for sandboxes of one shape, and end for callers that find no room."""

    def spare(self) -> Sequence[Slot]:
        """All of them, the first to end first."""

    def starting(self) -> Sequence[Slot]:
        """Those that are being made ready."""

    def give_up(self, slot: Slot) -> None:
        """Ends one."""


@dataclass(slots=True)
class SlotPool:
    """The slots that hold no sandbox, and the callers that wait for one."""

    maker: SlotMaker
    idle: IdleSlots
    facts: NodeFacts
    launchable: LaunchableNodes = field(default_factory=LaunchableNodes)
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    ledger: NodeLedger = field(default_factory=NodeLedger)
    spare: SpareSlots | None = None
    _queue: SlotQueue = field(default_factory=SlotQueue)
    _holders: SlotHolders = field(default_factory=SlotHolders)
    _ended: list[tuple[float, Slot]] = field(default_factory=list)  # and when: Ray may not know it yet
    _unplaced: int = 0
    _starting: int = 0
    _last_start: float = 0.0
    _looked: float = float("-inf")
    _changed: bool = True  # since Ray was asked

    # -- who gets which -----------------------------------------------------------------------------

    async def take(self, request: Request, environment: str, deadline_s: float) -> Slot:
        """A slot for a sandbox of `environment`, as soon as one is free or made. `DeadlineExceeded` after
        `deadline_s`; `NoCapacity` if there is no room and it may not wait."""
        idle = self.take_idle(request, environment)
        if idle is not None:
            return idle
        group = self._queue.group(request)
        waiter = Waiter(group, environment, self.clock(), asyncio.get_running_loop().create_future())
        group.add(waiter)
        self._make_missing(group)
        slot = waiter.slot
        try:
            if not request.patient and group.being_made < len(group):
                raise no_capacity(group.reason)
            async with asyncio.timeout(deadline_s):
                return await slot
        except BaseException as error:
            if slot.done() and not slot.cancelled() and slot.exception() is None:
                self.put(slot.result())  # it came as the wait ended
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    f"no room came free within {round(deadline_s, 2):g} s ({group.reason}); "
                    "ask for less, end other sandboxes, or add nodes",
                    field="deadline",
                ) from None
            raise
        finally:
            group.remove(waiter)
            self._drop_surplus(group)

    def take_idle(self, request: Request, environment: str) -> Slot | None:
        """An idle slot that would do, if there is one now."""
        slot = self.withdraw_idle(request)
        if slot is not None:
            self.hold(slot, environment)
        return slot

    def withdraw_idle(self, request: Request) -> Slot | None:
        """The same without a sandbox that holds it: a slot to make ready."""
        shape, nodes = request.shape, self.ledger.nodes
        known = [node for each in self.idle.nodes(shape) if (node := nodes.get(each)) and request.admits(node)]
        best = best_node(request, known)
        if best is not None and not self._prefers_another(request, best):
            return self.idle.take(shape, best.id)
        unknown = next((each for each in self.idle.nodes(shape) if each not in nodes), None)
        return None if unknown is None or not request.anywhere else self.idle.take(shape, unknown)

    def admits(self, request: Request, slot: Slot) -> bool:
        """Whether a slot is where the sandbox may run."""
        node = self.ledger.nodes.get(slot.node_id or "")
        return request.anywhere if node is None else request.admits(node)

    def check_room(self, request: Request) -> None:
        """Raises `NoCapacity` if no slot is idle and none can be made now."""
        idle = (self.ledger.nodes.get(each) for each in self.idle.nodes(request.shape))
        if not any(request.anywhere if node is None else request.admits(node) for node in idle):
            choice = self._choose(request)
            if isinstance(choice, Wait):
                raise no_capacity(choice.reason)

    def hold(self, slot: Slot, environment: str) -> None:
        """Notes that a slot holds a sandbox of `environment`. Idempotent."""
        if self._holders.hold(slot, environment):
            self.ledger.hold(slot.node_id, slot.shape)

    def put(self, slot: Slot) -> None:
        """Gives a free slot to the caller whose turn it is, else lets it idle."""
        self._release(slot)
        self._holders.know(slot)
        node = self.ledger.nodes.get(slot.node_id or "")
        if node is not None and node.cordoned is not None:
            self.discard(slot)
            return
        waiter = self._next(slot)
        if waiter is None:
            self.idle.add(slot, self.clock())
        else:
            waiter.group.remove(waiter)
            self.hold(slot, waiter.environment)
            waiter.slot.set_result(slot)

    def discard(self, slot: Slot) -> None:
        """Ends a slot that must not be used again, or is dead."""
        self._release(slot)
        if self._holders.forget(slot):
            self.ledger.give_back(slot.node_id or slot.asked, slot.shape)
            self._ended.append((self.clock(), slot))
            self._changed = True
        self.maker.kill(slot)

    def let_go(self, node_id: str) -> None:
        """Ends the idle slots on a node, which leaves the cluster."""
        for slot in self.idle.oldest_first():
            if slot.node_id == node_id:
                self._end_idle(slot)

    @property
    def has_waiting(self) -> bool:
        """Whether callers wait for a slot."""
        return bool(self._queue)

    def reason(self, request: Request) -> str | None:
        """Why sandboxes with this request wait; None if none does."""
        group = self._queue.groups.get(request)
        return group.reason if group else None

    def waiting(self) -> Iterator[WaitingSandboxes]:
        """What waits, by request."""
        now = self.clock()
        for request, group in self._queue.groups.items():
            if group:
                shape = request.shape
                yield WaitingSandboxes(
                    cpu=shape.cpu,
                    memory=shape.memory,
                    gpu=shape.gpu,
                    runtime=request.runtime,
                    regions=request.regions,
                    zone=request.zone,
                    count=len(group),
                    oldest_s=now - group.oldest().since,
                )

    # -- the loop -----------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Asks Ray what is free, and the node actors' last answers what they are."""
        self._changed = False
        rooms = await self.maker.rooms()
        now = self._looked = self.clock()
        spare = () if self.spare is None else (*self.spare.spare(), *self.spare.starting())
        idle = [*self.idle.oldest_first(), *(slot for slot in spare if slot.node_id is not None)]
        making = [making.slot for group in self._queue.groups.values() for making in group.pinned.values()]
        making += (slot for slot in spare if slot.node_id is None)
        self._ended = [(at, slot) for at, slot in self._ended if now - at < _RAY_KNOWS_S]
        self.ledger.update(
            rooms,
            self.facts.capacities(),
            self.facts.cordoned(),
            held=((slot.node_id, slot.shape) for slot in self._holders.held()),
            idle=((slot.node_id, slot.shape) for slot in idle),
            making=((slot.asked, slot.shape) for slot in making),
            ended=((slot.node_id, slot.shape) for _, slot in self._ended),
        )

    async def tend(self) -> None:
        """One turn of the pool's loop: ends slots that idled too long or on cordoned nodes, makes those that are
        missing, makes room for callers that wait, and keeps a few of the default shape ready."""
        for slot in self.idle.expired(self.clock()):
            self._end_idle(slot)
        if self._changed or self._queue or self.clock() - self._looked >= _LOOK_S:
            await self.refresh()
        cordoned = {node.id for node in self.ledger.nodes.values() if node.cordoned is not None}
        for slot in self.idle.oldest_first() if cordoned else ():
            if slot.node_id in cordoned:
                self._end_idle(slot)
        if self._queue:
            await self._serve()
        elif self.idle.missing(self._unplaced + self._starting + self._spare_count(self.idle.default_shape)):
            request = Request(self.idle.default_shape)
            choice = self._choose(request)
            if isinstance(choice, OnNode):
                self._make(self._queue.group(request), choice.node_id)

    async def _serve(self) -> None:
        """Looks anew at what every group waits for, the fairest first."""
        self._retry_stuck()
        planned = dict(self._holders.used)
        line = {group.oldest(): None for group in self._queue.groups.values() if group}
        for head in line:
            self._look_again(head.group)
            await asyncio.sleep(0)  # creates must not wait for the whole of it
        while (waiter := fairest(line, planned, self.ledger.total)) is not None:
            if self._make_one(waiter.group):
                shape = waiter.group.request.shape
                planned[waiter.environment] = planned.get(waiter.environment, Amount()).plus(shape)
            else:
                del line[waiter]
            await asyncio.sleep(0)
        if self.idle or self.spare is not None:
            self._make_room()

    def close(self) -> None:
        """Ends every slot that holds no sandbox."""
        for group in list(self._queue.groups.values()):
            for making in [*group.pending.values(), *group.pinned.values()]:
                self._retract(making)
        for slot in self.idle.oldest_first():
            self._end_idle(slot)

    # -- what is made -------------------------------------------------------------------------------

    def _choose(self, request: Request) -> OnNode | Wait:
        outlook = partial(self.launchable.outlook, now=self.wall_clock())
        return choose(request, self.ledger.nodes.values(), outlook)

    def _make_missing(self, group: Group) -> None:
        """Asks for a slot for each caller that waits, as far as that is sensible."""
        while self._make_one(group):
            pass

    def _make_one(self, group: Group) -> bool:
        """Asks for one slot; whether one was missing and could be asked for."""
        if group.being_made >= len(group) or len(group.pending) >= MAX_UNPLACED:
            return False
        choice = self._choose(group.request)
        if isinstance(choice, OnNode):
            group.reason = STARTING
            if self._starting >= _MAX_STARTING:
                return False
            self._make(group, choice.node_id)
            return True
        group.reason, group.selector = choice.reason, choice.selector
        if not group.request.patient or self._unplaced >= MAX_UNPLACED_IN_ALL:
            return False
        self._make(group, None)
        return True

    def _look_again(self, group: Group) -> None:
        """What a group waits for may have changed: where there is room, what is launched, what is cordoned."""
        choice = self._choose(group.request)
        if isinstance(choice, OnNode):
            group.reason = STARTING
            ray_knows = group.selector.allows(self.ledger.nodes[choice.node_id])
        else:
            group.reason = choice.reason
            ray_knows = choice.selector == group.selector
            if not group.request.patient:
                for waiter in group.all()[group.being_made :]:
                    group.remove(waiter)
                    _tell(waiter, no_capacity(group.reason))
        if not ray_knows:
            for making in list(group.pending.values()):
                self._retract(making)

    def make_spare(self, request: Request) -> Slot | None:
        """A new slot to be made ready, if some node has room for it now. Its maker must still place it."""
        choice = self._choose(request)
        if isinstance(choice, OnNode):
            return self._create(request, choice.node_id)
        self._changed = True  # somebody waits for room: Ray is asked every second
        return None

    def _create(self, request: Request, node_id: str | None, selector: Selector = ANYWHERE) -> Slot:
        slot = self.maker.create(request.shape, node_id, selector)
        slot.asked = node_id
        self._holders.know(slot)
        self.ledger.take(node_id, slot.shape)
        self._changed = True
        return slot

    def _make(self, group: Group, node_id: str | None) -> None:
        """On a node, or (None) wherever the group's selector allows."""
        slot = self._create(group.request, node_id, group.selector)
        making = Making(slot, group, self.clock())
        if node_id is None:
            group.pending[slot.id] = making
            self._unplaced += 1
        else:
            group.pinned[slot.id] = making
            self._starting += 1
        making.task = tasks.supervise(
            partial(self._settle, making), "make slot", attempts=1, failed=partial(self._not_made, making)
        )

    def _made(self, making: Making) -> None:
        """It is being made no more."""
        group, slot_id = making.group, making.slot.id
        if group.pending.pop(slot_id, None) is not None:
            self._unplaced -= 1
        if group.pinned.pop(slot_id, None) is not None:
            self._starting -= 1

    async def _settle(self, making: Making) -> None:
        slot, group = making.slot, making.group
        await self.maker.placed(slot)
        if slot.node_id not in self.ledger.nodes:
            await self.refresh()  # a new node
        self._made(making)
        if slot.asked is None:
            self.ledger.take(slot.node_id, slot.shape)
        self._last_start = self.clock()
        group.failures = 0
        self.put(slot)
        self._make_missing(group)
        self._queue.tidy(group)

    def _not_made(self, making: Making, error: Exception) -> None:
        """Another is made; after some failures whoever has waited longest is told."""
        group = making.group
        self._retract(making)
        group.failures += 1
        if group and (making.slot.asked is None or group.failures >= _ATTEMPTS):
            waiter = group.oldest()
            group.remove(waiter)
            _tell(waiter, Unavailable(f"a sandbox actor did not start: {error}; try again"))
        self._make_missing(group)
        self._queue.tidy(group)

    def _retract(self, making: Making) -> None:
        """Ends a slot that does not run yet."""
        self._made(making)
        if making.task is not None:
            making.task.cancel()
        self.discard(making.slot)

    def _drop_surplus(self, group: Group) -> None:
        """Ends slots that are being made and for which nobody waits any more."""
        kept = max(0, self.idle.settings.idle_slots - self.idle.count(group.request.shape))
        wanted = max(len(group), kept if group.request == Request(self.idle.default_shape) else 0)
        while group.being_made > wanted:
            self._retract(next(reversed((group.pending or group.pinned).values())))
        self._queue.tidy(group)

    def _retry_stuck(self) -> None:
        """Seeks another node for slots that do not come up where they were put."""
        now = self.clock()
        for group in list(self._queue.groups.values()):
            for making in list(group.pinned.values()):
                if now - max(making.since, self._last_start) >= _STUCK_S:
                    self._retract(making)

    def _make_room(self) -> None:
        """Ends the idle slots that are in the way of callers that wait."""
        now = self.clock()
        waiters = (waiter for group in self._queue.groups.values() for waiter in group.first(MAX_UNPLACED))
        line = sorted(waiters, key=lambda waiter: waiter.since)[:MAX_UNPLACED]
        waiting = [Waiting(each.group.request, now - max(each.since, self._last_start)) for each in line]
        spare = [] if self.spare is None else self.spare.spare()
        for slot in idle_to_end(waiting, self.ledger.nodes, [*self.idle.oldest_first(), *spare]):
            if self.spare is not None and slot.prepared is not None:
                self.spare.give_up(slot)
            else:
                self._end_idle(slot)

    def _end_idle(self, slot: Slot) -> None:
        self.idle.remove(slot)
        self.discard(slot)

    def _prefers_another(self, request: Request, node: NodeView) -> bool:
        """Whether a region that the request prefers to the node's has room, or will have."""
        if len(request.regions) < 2 or node.region not in request.regions:
            return False
        better = request.regions[: request.regions.index(node.region)]
        if not better:
            return False
        choice = self._choose(replace(request, regions=better))
        return isinstance(choice, OnNode) or choice.coming

    def _spare_count(self, shape: SlotShape) -> int:
        spare = () if self.spare is None else (*self.spare.spare(), *self.spare.starting())
        return sum(1 for slot in spare if slot.shape == shape)

    def _next(self, slot: Slot) -> Waiter | None:
        """Whose turn it is for this slot."""
        while True:
            waiter = fairest(
                (
                    waiter
                    for group in self._queue.of_shape(slot.shape)
                    if self.admits(group.request, slot)
                    for waiter in group.heads()
                ),
                self._holders.used,
                self.ledger.total,
            )
            if waiter is None or not waiter.slot.done():
                return waiter
            waiter.group.remove(waiter)

    def _release(self, slot: Slot) -> None:
        if self._holders.release(slot):
            self.ledger.release(slot.node_id, slot.shape)


def no_capacity(reason: str) -> NoCapacity:
    """The error of a create that may not wait."""
    return NoCapacity(
        f"wait_for_capacity: {reason}; nothing was created. Try later, or allow it to wait", field="wait_for_capacity"
    )


def _tell(waiter: Waiter, error: Exception) -> None:
    if not waiter.slot.done():
        waiter.slot.set_exception(error)
