"""The slots that are being made for callers that wait: on the node that was chosen, or pending in Ray, which is the
demand that its autoscaler sees."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf

from shoal.actors.controller.placement import OnNode, Wait
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.slot_queue import STARTING, Group, Making, SlotQueue, Waiter
from shoal.actors.controller.slot_stock import SlotStock
from shoal.model import tasks
from shoal.model.errors import NoCapacity, ShoalError, Unavailable

MAX_UNPLACED = 128
MAX_UNPLACED_IN_ALL = 512
"""The most slots with one request, and in all, for which Ray looks for a node. Thousands would overload Ray."""

_STUCK_S = 30.0
"""Seconds after which a slot that does not come up is sought another node: others have taken its room, or its process
is lost (Ray itself waits a minute for one). While others come up it may only be slow, unless they have overtaken it."""

_OVERTAKEN_S = 10.0
"""Seconds between two requests for slots on a node, by which starts at the same time hardly change places."""

_YIELD_S = 1.0
"""Seconds for which Ray is not to look for room, so that a slot gets it that was asked for there."""

_RAY_PLACES_S = 2.0
"""Seconds within which Ray surely gives a node's room to a slot that is pending, and counts it."""

_IN_VAIN_S = 1.0
"""Seconds without a slot that comes free, after which a group does not wait for one."""

_ATTEMPTS = 3
"""Slots in a row that may fail to start before who has waited longest is told."""


@dataclass(slots=True)
class SlotDemand:
    """`came_up`: takes each slot that runs; `refresh`: asks Ray what is free; `last_start`: by the clock, of any."""

    stock: SlotStock
    queue: SlotQueue
    came_up: Callable[[Slot], None]
    refresh: Callable[[], Awaitable[None]]
    last_start: float = 0.0
    _pending: int = 0
    _pinned: int = 0
    _newest_up: dict[str, float] = field(default_factory=dict)
    """By node: when the latest of the slots that came up there was asked for. Much older ones were overtaken."""

    @property
    def being_made(self) -> int:
        return self._pending + self._pinned

    def make_missing(self, group: Group) -> None:
        """Asks for a slot for each caller that waits, as far as that is sensible."""
        while self.make_one(group):
            pass

    def make_one(self, group: Group) -> bool:
        """Asks for one slot; whether one was missing and could be asked for."""
        if group.being_made >= len(group) or len(group.pending) >= MAX_UNPLACED:
            return False
        choice = self.stock.choose(group.request)
        if isinstance(choice, OnNode):
            group.reason = STARTING
            node_id = choice.node_id if self._may_start(group, choice.node_id) else self._overflow(group, choice)
            if node_id is None:
                return False
            self.make(group, node_id)
            return True
        group.reason, group.selector, group.room_since = choice.reason, choice.selector, inf
        if not group.request.patient or self._pending >= MAX_UNPLACED_IN_ALL or self.stock.clock() < group.not_before:
            return False
        self.make(group, None)
        return True

    def _may_start(self, group: Group, node_id: str) -> bool:
        may = self.stock.may_start(node_id, in_vain=self._waits_in_vain(group))
        return may and not self._ray_will_place(group, node_id)

    def _overflow(self, group: Group, choice: OnNode | Wait) -> str | None:
        """A node of a less preferred region, where more wait than the better ones have room for: those beyond need not
        wait until no more slots start there."""
        regions, left = group.request.regions, len(group) - group.being_made
        while isinstance(choice, OnNode) and (region := self.stock.ledger.nodes[choice.node_id].region) in regions[:-1]:
            worse = regions.index(region) + 1
            if left <= self.stock.room_for(replace(group.request, regions=regions[:worse])):
                return None
            choice = self.stock.choose(replace(group.request, regions=regions[worse:]))
            if isinstance(choice, OnNode) and self._may_start(group, choice.node_id):
                return choice.node_id
        return None

    def _waits_in_vain(self, group: Group) -> bool:
        """Whether no slot comes free for it: those that come and go on a node may be of another shape."""
        return bool(group) and self.stock.clock() - max(group.served, group.oldest().since) >= _IN_VAIN_S

    def _ray_will_place(self, group: Group, node_id: str) -> bool:
        """Whether a node has room that Ray is about to give to a slot that is pending: one that was asked for there
        would wait in vain."""
        if not group.pending or not group.selector.allows(self.stock.ledger.nodes[node_id]):
            return False
        now = self.stock.clock()
        group.room_since = min(group.room_since, now)
        return now - group.room_since < _RAY_PLACES_S

    def make_instead_of(self, slot: Slot, group: Group) -> None:
        """Ends a slot, and makes one for a group of another shape in its place."""
        node_id, stock = slot.node_id, self.stock
        stock.discard(slot)
        node = stock.ledger.nodes.get(node_id or "")
        if node is None or not node.free.covers(group.request.shape):
            return
        group.helped = stock.clock()
        for other in self.queue.groups.values():
            if other.pending and node.free.covers(other.request.shape) and other.selector.allows(node):
                # Ray would give the room to whichever it looks at first.
                other.not_before = stock.clock() + _YIELD_S
                for making in list(other.pending.values()):
                    self._retract(making)
        self.make(group, node.id)

    def make(self, group: Group, node_id: str | None) -> None:
        """On a node, or (None) wherever the group's selector allows."""
        making = Making(self.stock.create(group.request, node_id, group.selector), group, self.stock.clock())
        if node_id is None:
            group.pending[making.slot.id] = making
            self._pending += 1
        else:
            group.pinned[making.slot.id] = making
            self._pinned += 1
        making.task = tasks.supervise(
            partial(self._settle, making), "make slot", attempts=1, failed=partial(self._not_made, making)
        )

    def look_again(self, group: Group) -> None:
        """What a group waits for may have changed: where there is room, what is launched, what is cordoned."""
        choice = self.stock.choose(group.request)
        if isinstance(choice, OnNode):
            group.reason = STARTING
            ray_knows = group.selector.allows(self.stock.ledger.nodes[choice.node_id])
        else:
            group.reason = choice.reason
            ray_knows = choice.selector == group.selector
            if not group.request.patient:
                _refuse(group, choice)
        if not ray_knows:
            for making in list(group.pending.values()):
                self._retract(making)

    def retry_stuck(self) -> None:
        """Seeks another node for slots that do not come up where they were put."""
        now, nodes = self.stock.clock(), self.stock.ledger.nodes
        self._newest_up = {node_id: since for node_id, since in self._newest_up.items() if node_id in nodes}
        for group in self.queue.groups.values():
            for making in list(group.pinned.values()):
                others_come_up = now - self.last_start < _STUCK_S
                overtaken = making.since + _OVERTAKEN_S <= self._newest_up.get(making.slot.asked or "", 0.0)
                if now - making.since >= _STUCK_S and (overtaken or not others_come_up):
                    self._retract(making)

    def drop_surplus(self, group: Group, kept: int = 0) -> None:
        """Ends slots that are being made and for which nobody waits any more. `kept`: how many stay all the same."""
        while group.being_made > max(len(group), kept):
            self._retract(next(reversed((group.pending or group.pinned).values())))
        self.queue.tidy(group)

    def close(self) -> None:
        for group in list(self.queue.groups.values()):
            for making in [*group.pending.values(), *group.pinned.values()]:
                self._retract(making)

    async def _settle(self, making: Making) -> None:
        slot, group = making.slot, making.group
        await self.stock.maker.placed(slot)
        if slot.node_id not in self.stock.ledger.nodes:
            await self.refresh()  # a new node
        self._over(making)
        self.stock.came_up(slot)
        self.last_start = self.stock.clock()
        if slot.node_id is not None:
            self._newest_up[slot.node_id] = max(making.since, self._newest_up.get(slot.node_id, 0.0))
        group.failures = 0
        self.came_up(slot)
        self.make_missing(group)
        self.start_next()
        self.queue.tidy(group)

    def start_next(self) -> None:
        """A node may start another slot: that of whoever has waited longest for a turn."""
        behind = [group for group in self.queue.groups.values() if group.in_turn]
        for group in sorted(behind, key=lambda group: group.oldest().since)[:1]:
            self.make_one(group)

    def _not_made(self, making: Making, error: Exception) -> None:
        """Another is made; after some failures whoever has waited longest is told."""
        group = making.group
        if isinstance(error, ShoalError):
            self.stock.health.failed(making.slot.asked, making.slot.id, None, error)
        self._retract(making)
        group.failures += 1
        self.start_next()
        if group and (making.slot.asked is None or group.failures >= _ATTEMPTS):
            _tell(group.oldest(), Unavailable(f"a sandbox actor did not start: {error}; try again"))
        self.make_missing(group)
        self.queue.tidy(group)

    def _retract(self, making: Making) -> None:
        """Ends a slot that does not run yet."""
        self._over(making)
        if making.task is not None:
            making.task.cancel()
        self.stock.discard(making.slot)

    def _over(self, making: Making) -> None:
        """It is being made no more."""
        group, slot_id = making.group, making.slot.id
        if group.pending.pop(slot_id, None) is not None:
            self._pending -= 1
        if group.pinned.pop(slot_id, None) is not None:
            self._pinned -= 1


def no_capacity(reason: str) -> NoCapacity:
    """The error of a create that may not wait."""
    return NoCapacity(
        f"wait_for_capacity: {reason}; nothing was created. Try later, or allow it to wait", field="wait_for_capacity"
    )


def _refuse(group: Group, choice: Wait) -> None:
    """Those for whom no slot is being made may not wait."""
    for waiter in group.all()[group.being_made :]:
        _tell(waiter, no_capacity(choice.reason))


def _tell(waiter: Waiter, error: Exception) -> None:
    waiter.group.remove(waiter)
    if not waiter.slot.done():
        waiter.slot.set_exception(error)
