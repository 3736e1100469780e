"""The sandbox actors: who gets which.

Starting a Ray worker takes half a second and 45 MB, so a free slot waits a while for the next sandbox of its shape. If
none is free, one is made on the node that `placement.py` chooses, or where Ray finds room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

from shoal.actors.controller.fair_share import fairest, outranks
from shoal.actors.controller.idle_slots import IdleSlots
from shoal.actors.controller.ledger import NodeView
from shoal.actors.controller.placement import OnNode, Request, Wait, best_node
from shoal.actors.controller.reclaim import Waiting, idle_to_end
from shoal.actors.controller.room import Amount
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.slot_demand import MAX_UNPLACED, SlotDemand, no_capacity
from shoal.actors.controller.slot_queue import Group, SlotQueue, Waiter
from shoal.actors.controller.slot_stock import SlotStock
from shoal.model.capacity import WaitingSandboxes
from shoal.model.errors import DeadlineExceeded
from shoal.model.spec import SlotShape

START_S = 30.0
"""Seconds within which a slot comes up where there is room. A create that may not wait for room waits no longer: Ray
may see less room than the controller."""

_HELP_EACH_S = 2.0
"""Seconds after which another slot may end for a group of another shape: workers must not come and go for that."""

_MOST_GROUPS = 100
"""Groups of other shapes that are looked at for each slot that comes free."""


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

    stock: SlotStock
    idle: IdleSlots
    spare: SpareSlots | None = None
    _queue: SlotQueue = field(default_factory=SlotQueue)
    _demand: SlotDemand = field(init=False)

    def __post_init__(self) -> None:
        self._demand = SlotDemand(self.stock, self._queue, self.put, self.refresh)

    # -- who gets which -----------------------------------------------------------------------------

    async def take(self, request: Request, environment: str, deadline_s: float) -> Slot:
        """A slot for a sandbox of `environment`, as soon as one is free or made. `DeadlineExceeded` after
        `deadline_s`; `NoCapacity` if there is no room and it may not wait, or if there seems to be and after `START_S`
        there is no slot."""
        idle = self.take_idle(request, environment)
        if idle is not None:
            return idle
        group = self._queue.group(request)
        waiter = Waiter(group, environment, self.stock.clock(), asyncio.get_running_loop().create_future())
        group.add(waiter)
        self._demand.make_missing(group)
        slot = waiter.slot
        try:
            if not request.patient and group.being_made < len(group) and not group.in_turn:
                raise no_capacity(group.reason)
            async with asyncio.timeout(deadline_s if request.patient else min(deadline_s, START_S)):
                return await slot
        except BaseException as error:
            if slot.done() and not slot.cancelled() and slot.exception() is None:
                self.put(slot.result())  # it came as the wait ended
            if isinstance(error, TimeoutError):
                if not request.patient and deadline_s > START_S:
                    raise no_capacity(f"no room came free within {START_S:g} s ({group.reason})") from None
                raise DeadlineExceeded(
                    f"no room came free within {round(deadline_s, 2):g} s ({group.reason}); "
                    "ask for less, end other sandboxes, or add nodes",
                    field="deadline",
                ) from None
            raise
        finally:
            group.remove(waiter)
            self._demand.drop_surplus(group, self._kept(request))

    def take_idle(self, request: Request, environment: str) -> Slot | None:
        """An idle slot that would do, if there is one now."""
        slot = self.withdraw_idle(request)
        if slot is not None:
            self.stock.hold(slot, environment)
        return slot

    def withdraw_idle(self, request: Request) -> Slot | None:
        """The same, but no sandbox holds it."""
        shape, nodes = request.shape, self.stock.ledger.nodes
        known = [node for each in self.idle.nodes(shape) if (node := nodes.get(each)) and request.admits(node)]
        best = best_node(request, known)
        if best is not None and not self._prefers_another(request, best):
            return self.idle.take(shape, best.id)
        unknown = (each for each in self.idle.nodes(shape) if each not in nodes and request.admits_unknown(each))
        found = next(unknown, None)
        return None if found is None else self.idle.take(shape, found)

    def check_room(self, request: Request) -> None:
        """Raises `NoCapacity` if no slot is idle and none can be made now."""
        idle = ((each, self.stock.ledger.nodes.get(each)) for each in self.idle.nodes(request.shape))
        if not any(request.admits_unknown(each) if node is None else request.admits(node) for each, node in idle):
            choice = self.stock.choose(request)
            if isinstance(choice, Wait):
                raise no_capacity(choice.reason)

    def put(self, slot: Slot) -> None:
        """Gives a free slot to the caller whose turn it is, else lets it idle."""
        self.stock.release(slot)
        self.stock.holders.know(slot)
        node = self.stock.ledger.nodes.get(slot.node_id or "")
        if node is not None and node.cordoned is not None:
            self.stock.discard(slot)
            return
        waiter = self._next(slot)
        if waiter is None:
            self.idle.add(slot, self.stock.clock())
        elif waiter.group.request.shape != slot.shape:
            self._demand.make_instead_of(slot, waiter.group)
        else:
            waiter.group.remove(waiter)
            waiter.group.served = self.stock.clock()
            self.stock.hold(slot, waiter.environment)
            waiter.slot.set_result(slot)

    def settled(self, slot: Slot) -> None:
        """The sandbox that a slot holds runs: its node may start another slot, for somebody who waits for a turn."""
        self.stock.settled(slot)
        if self._queue:
            self._demand.start_next()

    @property
    def has_waiting(self) -> bool:
        """Whether any caller waits for a slot."""
        return bool(self._queue)

    def has_waiting_beside(self, request: Request) -> bool:
        """Whether callers wait for a slot where one for `request` might be made, too."""
        return any(group and request.meets(group.request) for group in self._queue.groups.values())

    def reason(self, request: Request) -> str | None:
        """Why sandboxes with this request wait; None if none does."""
        group = self._queue.groups.get(request)
        return group.reason if group else None

    def waiting(self) -> Iterator[WaitingSandboxes]:
        """What waits for room, by request: what has room and only starts is left out."""
        now = self.stock.clock()
        for request, group in self._queue.groups.items():
            if request.nodes is not None:  # a new machine would not have their image
                continue
            short = group.short
            if short and group.in_turn:
                short = max(0, short - self.stock.room_for(request))
            if short:
                in_ray = min(short, len(group.pending))
                yield request.as_waiting(short, now - group.oldest().since, in_ray)

    def waiting_callers(self) -> Iterator[tuple[str, str, int, float]]:
        """(why, environment, how many, since when by the stock's clock) of all that wait for a slot."""
        for group in self._queue.groups.values():
            for environment, count, since in group.by_environment():
                yield group.reason, environment, count, since

    # -- the loop -----------------------------------------------------------------------------------

    async def tend(self) -> None:
        """One turn of the pool's loop: ends slots that idled too long or on cordoned nodes, makes those that are
        missing, makes room for callers that wait, and keeps a few of the default shape ready."""
        for slot in self.idle.expired(self.stock.clock()):
            self._end_idle(slot)
        if self._queue or self.stock.due:
            await self.refresh()
        for node_id in self.stock.cordoned:
            self.let_go(node_id)
        if self._queue:
            await self._serve()
        elif self.idle.missing(self._demand.being_made + self._spare_count(self.idle.default_shape)):
            request = Request(self.idle.default_shape)
            choice = self.stock.choose(request)
            if isinstance(choice, OnNode) and self.stock.may_start(choice.node_id):
                self._demand.make(self._queue.group(request), choice.node_id)

    async def refresh(self) -> None:
        """Asks Ray what is free."""
        spare = () if self.spare is None else (*self.spare.spare(), *self.spare.starting())
        making = [making.slot for group in self._queue.groups.values() for making in group.pinned.values()]
        await self.stock.refresh(
            free=[*self.idle.oldest_first(), *(slot for slot in spare if slot.node_id is not None)],
            making=[*making, *(slot for slot in spare if slot.node_id is None)],
        )

    def let_go(self, node_id: str) -> None:
        """Ends the idle and the spare slots on a node where nothing new may start, or which one sandbox needs."""
        for slot in self.idle.oldest_first():
            if slot.node_id == node_id:
                self._end_idle(slot)
        for slot in () if self.spare is None else self.spare.spare():
            if slot.node_id == node_id and self.spare is not None:
                self.spare.give_up(slot)

    def close(self) -> None:
        """Ends every slot that holds no sandbox."""
        self._demand.close()
        for slot in self.idle.oldest_first():
            self._end_idle(slot)

    async def _serve(self) -> None:
        """Looks anew at what every group waits for, and makes slots one after another for whose turn it is."""
        self._demand.retry_stuck()
        used, total = dict(self.stock.holders.used), self.stock.ledger.total
        line = {group.oldest(): None for group in self._queue.groups.values() if group}
        for head in line:
            self._demand.look_again(head.group)
            await asyncio.sleep(0)  # creates must not wait for the whole of it
        while (waiter := fairest(line, used, total)) is not None:
            if self._demand.make_one(waiter.group):
                shape = waiter.group.request.shape
                used[waiter.environment] = used.get(waiter.environment, Amount()).plus(shape)
            else:
                del line[waiter]
            await asyncio.sleep(0)
        self._make_room()

    def _make_room(self) -> None:
        """Ends the idle slots that are in the way of callers that wait."""
        spare = [] if self.spare is None else self.spare.spare()
        idle = [*self.idle.oldest_first(), *spare]
        if not idle:
            return
        now, last_start = self.stock.clock(), self._demand.last_start
        waiters = (waiter for group in self._queue.groups.values() for waiter in group.first(MAX_UNPLACED))
        line = sorted(waiters, key=lambda waiter: waiter.since)[:MAX_UNPLACED]
        waiting = [Waiting(each.group.request, now - max(each.since, last_start)) for each in line]
        for slot in idle_to_end(waiting, self.stock.tiers, idle):
            if self.spare is not None and slot.prepared is not None:
                self.spare.give_up(slot)
            else:
                self._end_idle(slot)

    def _end_idle(self, slot: Slot) -> None:
        self.idle.remove(slot)
        self.stock.discard(slot)

    def _prefers_another(self, request: Request, node: NodeView) -> bool:
        """Whether a region that the request prefers to the node's has room, or a node that has its image."""
        if request.near and node.id not in request.near:
            there = replace(request, nodes=request.near)
            if isinstance(self.stock.choose(there), OnNode):
                return True
        if len(request.regions) < 2 or node.region not in request.regions:
            return False
        better = request.regions[: request.regions.index(node.region)]
        return bool(better) and isinstance(self.stock.choose(replace(request, regions=better)), OnNode)

    def _kept(self, request: Request) -> int:
        """How many slots are made for this request though nobody waits."""
        if request != Request(self.idle.default_shape):
            return 0
        return max(0, self.idle.settings.idle_slots - self.idle.count(request.shape))

    def _spare_count(self, shape: SlotShape) -> int:
        spare = () if self.spare is None else (*self.spare.spare(), *self.spare.starting())
        return sum(1 for slot in spare if slot.shape == shape)

    def _next(self, slot: Slot) -> Waiter | None:
        """Whose turn it is for this slot, or for the room that its end makes."""
        used, total = self.stock.holders.used, self.stock.ledger.total
        same = self._fairest(slot, self._queue.of_shape(slot.shape))
        other = self._fairest(slot, self._others(slot))
        if same is not None and (other is None or not outranks(other, same, used, total)):
            return same
        return other

    def _fairest(self, slot: Slot, groups: Iterable[Group]) -> Waiter | None:
        admitted = [group for group in groups if self.stock.admits(group.request, slot)]
        while True:
            heads = (waiter for group in admitted for waiter in group.heads())
            waiter = fairest(heads, self.stock.holders.used, self.stock.ledger.total)
            if waiter is None or not waiter.slot.done():
                return waiter
            waiter.group.remove(waiter)

    def _others(self, slot: Slot) -> Iterator[Group]:
        """Those of other shapes that lack room, and would have enough once this slot has ended."""
        room = self.stock.room_without(slot)
        if room is not None:
            for group in islice(self._queue.groups.values(), _MOST_GROUPS):
                shape = group.request.shape
                lately = self.stock.clock() - group.helped < _HELP_EACH_S
                if shape != slot.shape and group.short and not group.in_turn and not lately and room.covers(shape):
                    yield group
