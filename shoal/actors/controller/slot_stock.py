"""The slots that there are, on which nodes, and what of the nodes is free: what deciding who gets which goes by."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from shoal.actors.controller.capacity import LaunchableNodes
from shoal.actors.controller.changing_slots import ChangingSlots
from shoal.actors.controller.holders import SlotHolders
from shoal.actors.controller.ledger import NodeFacts, NodeLedger
from shoal.actors.controller.node_health import NodeHealth
from shoal.actors.controller.placement import (
    ANYWHERE,
    OnNode,
    Request,
    Selector,
    Tier,
    Wait,
    choose,
    request_for,
    tiers,
)
from shoal.actors.controller.room import Amount
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.slot_maker import SlotMaker
from shoal.model.capacity import Capacity
from shoal.model.spec import SandboxSpec

_RAY_KNOWS_S = 3.0
"""Seconds after which Ray surely counts as free what an ended slot held."""

_MOST_REQUESTS = 1000
"""Requests for which it is remembered where they may run, and what they wait for."""

_BEST_S = 0.5
"""Seconds for which the best node for a request is taken to be the best, while it has room."""

_LOOK_S = 5.0
"""Seconds after which Ray is asked what is free, though nothing has changed here."""


@dataclass(slots=True)
class SlotStock:
    """`facts`: what the node actors told; `wall_clock`: unix seconds; `unsure`: whether it is time to ask Ray again,
    for something has changed, or somebody looked for room in vain; `nodes_with`: the nodes that have an image, None
    where any may run it; `nodes_mounting`: the same for what a spec mounts."""

    maker: SlotMaker
    facts: NodeFacts
    launchable: LaunchableNodes = field(default_factory=LaunchableNodes)
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    ledger: NodeLedger = field(default_factory=NodeLedger)
    holders: SlotHolders = field(default_factory=SlotHolders)
    health: NodeHealth = field(default_factory=NodeHealth)
    unsure: bool = True
    nodes_with: Callable[[str], tuple[str, ...] | None] = lambda image: None
    nodes_near: Callable[[str], tuple[str, ...]] = lambda image: ()
    nodes_mounting: Callable[[SandboxSpec], tuple[str, ...] | None] = lambda spec: None
    _tiers: dict[Request, tuple[Tier, ...]] = field(default_factory=dict)
    _tiers_of: int = -1
    _waits: dict[Request, tuple[tuple[int, Capacity, int], Wait]] = field(default_factory=dict)
    _starting: set[str] = field(default_factory=set)
    _changing: ChangingSlots = field(init=False)
    _best: dict[Request, tuple[int, float, str]] = field(default_factory=dict)  # of which ledger, until when
    _looked: float = float("-inf")
    _ended: list[tuple[float, Slot]] = field(default_factory=list)  # and when: Ray may not know it yet

    def __post_init__(self) -> None:
        self._changing = ChangingSlots(self.ledger)

    def request(self, spec: SandboxSpec) -> Request:
        """What a sandbox asks of its node. `spec`: with its image by digest, if that is one of the cluster's."""
        nodes = self.nodes_with(spec.image)
        if spec.volumes and (mounting := self.nodes_mounting(spec)) is not None:
            nodes = mounting if nodes is None else tuple(sorted({*nodes} & {*mounting}))
        return request_for(spec, nodes, self.nodes_near(spec.image))

    def choose(self, request: Request) -> OnNode | Wait:
        """Where the next slot for `request` is made, or what it waits for."""
        now = self.wall_clock()
        # Callers come by the thousand when nothing is free. What they wait for changes by itself only by the second.
        if (best := self._best_still(request)) is not None:
            return OnNode(best)
        grounds = (self.ledger.freed, self.launchable.reported, int(now))
        if (known := self._waits.get(request)) is not None and known[0] == grounds:
            return known[1]
        choice = choose(request, self.tiers(request), partial(self.launchable.outlook, now=now))
        if isinstance(choice, Wait):
            if len(self._waits) >= _MOST_REQUESTS:
                self._waits.clear()
            self._waits[request] = (grounds, choice)
        elif not request.spread and len(request.regions) < 2:
            if len(self._best) >= _MOST_REQUESTS:
                self._best.clear()
            self._best[request] = (self.ledger.version, self.clock() + _BEST_S, choice.node_id)
        return choice

    def _best_still(self, request: Request) -> str | None:
        """The node that was chosen last for a request, if it surely would do again: packing fills one after another,
        and comparing hundreds for each create costs more than all else here."""
        version, until, node_id = self._best.get(request, (-1, 0.0, ""))
        if version != self.ledger.version or self.clock() >= until:
            return None
        node = self.ledger.nodes.get(node_id)
        return node_id if node is not None and not node.busy and node.free.covers(request.shape) else None

    def tiers(self, request: Request) -> tuple[Tier, ...]:
        """The nodes where it may run, by the regions that it prefers."""
        if self._tiers_of != self.ledger.version or len(self._tiers) >= _MOST_REQUESTS:
            self._tiers_of = self.ledger.version
            self._tiers.clear()
        found = self._tiers.get(request)
        if found is None:
            found = self._tiers[request] = tiers(request, self.ledger.nodes.values())
        return found

    def admits(self, request: Request, slot: Slot) -> bool:
        """Whether a slot is where the sandbox may run."""
        node = self.ledger.nodes.get(slot.node_id or "")
        return request.admits_unknown(slot.node_id) if node is None else request.admits(node)

    def create(self, request: Request, node_id: str | None, selector: Selector = ANYWHERE) -> Slot:
        """A new slot on a node, or (None) wherever `selector` allows. It must still be placed."""
        slot = self.maker.create(request.shape, node_id, selector)
        slot.asked = node_id
        self.holders.know(slot)
        self.ledger.take(node_id, slot.shape)
        if node_id is not None:
            self._starting.add(slot.id)
            self.ledger.count_starting(node_id, 1)
        self.unsure = True
        return slot

    def may_start(self, node_id: str, *, in_vain: bool = False) -> bool:
        """Whether one more slot may start on a node now. `in_vain`: none comes free there for whoever waits."""
        self._changing.expire(self.clock())
        node = self.ledger.nodes[node_id]
        return not (node.crowded if in_vain else node.busy)

    def create_spare(self, request: Request) -> Slot | None:
        """A new slot that nobody waits for, if a node has room for it and may start one now."""
        choice = self.choose(request)
        if isinstance(choice, Wait):
            self.unsure = True
            return None
        return self.create(request, choice.node_id) if self.may_start(choice.node_id) else None

    def came_up(self, slot: Slot) -> None:
        """A slot has been placed."""
        self._has_started(slot)
        if slot.asked is None:
            self.ledger.take(slot.node_id, slot.shape)

    def hold(self, slot: Slot, environment: str) -> None:
        """Notes that a slot holds a sandbox of `environment`, which is about to come. Idempotent."""
        if not self.holders.knows(slot):  # made elsewhere, for a container that was there already
            self.ledger.take(slot.node_id, slot.shape)
            self.unsure = True
        if self.holders.hold(slot, environment):
            self.ledger.hold(slot.node_id, slot.shape)
            self._changing.begin(slot, self.clock())

    def settled(self, slot: Slot) -> None:
        """Notes that the sandbox that a slot holds has come. Idempotent."""
        self._changing.came(slot, self.clock())

    def leaving(self, slot: Slot) -> None:
        """Notes that the sandbox that a slot holds is about to go."""
        self._changing.begin(slot, self.clock())

    def release(self, slot: Slot) -> None:
        """Notes that a slot holds no sandbox. Idempotent."""
        self._changing.finish(slot)
        if self.holders.release(slot):
            self.ledger.release(slot.node_id, slot.shape)

    def discard(self, slot: Slot) -> None:
        """Ends a slot that must not be used again, or is dead. Idempotent."""
        self.release(slot)
        self._has_started(slot)
        if self.holders.forget(slot):
            self.ledger.give_back(slot.node_id or slot.asked, slot.shape)
            self._ended.append((self.clock(), slot))
            self.unsure = True
        self.maker.kill(slot)

    def room_for(self, request: Request) -> int:
        """How many slots for `request` have room on the nodes now, whenever they may start."""
        return sum(node.free.times(request.shape) for tier in self.tiers(request) for node in tier.nodes)

    def _has_started(self, slot: Slot) -> None:
        if slot.id in self._starting:
            self._starting.remove(slot.id)
            self.ledger.count_starting(slot.asked, -1)

    def room_without(self, slot: Slot) -> Amount | None:
        """What is free on the slot's node once it has ended; None where that is not known."""
        node = self.ledger.nodes.get(slot.node_id or "")
        return None if node is None else node.free.plus(slot.shape)

    @property
    def cordoned(self) -> frozenset[str]:
        """The nodes on which nothing new starts."""
        return frozenset(node.id for node in self.ledger.nodes.values() if node.cordoned is not None)

    @property
    def due(self) -> bool:
        """Whether it is time to ask Ray what is free."""
        return self.unsure or self.clock() - self._looked >= _LOOK_S

    async def refresh(self, free: Iterable[Slot], making: Iterable[Slot]) -> None:
        """Asks Ray what is free. `free`: the slots that run and hold no sandbox; `making`: those that do not run
        yet."""
        self.unsure = False
        rooms = await self.maker.rooms()
        now = self._looked = self.clock()
        self._ended = [(at, slot) for at, slot in self._ended if now - at < _RAY_KNOWS_S]
        self.ledger.update(
            rooms,
            self.facts.capacities(),
            self.facts.cordoned(),
            held=[(slot.node_id, slot.shape) for slot in self.holders.held()],
            idle=((slot.node_id, slot.shape) for slot in free),
            making=((slot.asked, slot.shape) for slot in making),
            ended=((slot.node_id, slot.shape) for _, slot in self._ended),
        )
