"""What of each node is taken, by whom: kept between Ray's figures, which are seconds old. Pure.

    total = free + slots (held or idle) + slots being made there + others' programs

Ray tells only total and free, and counts a slot some time after it was asked for. So the others' part is what Ray
counts beyond the slots that are known, and stays what it was where that is unclear.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from shoal.actors.controller.machine import Machine
from shoal.actors.controller.room import Amount, NodeRoom
from shoal.model.spec import SlotShape

_NOTHING = Amount()

Placed = tuple[str | None, SlotShape]
"""A slot's node and shape."""


class NodeFacts(Protocol):
    """What is known of the nodes beside Ray's figures, by their ids."""

    def capacities(self) -> Mapping[str, Machine]:
        """Of those whose node actor has answered."""

    def cordoned(self) -> Mapping[str, str]:
        """Those on which nothing new may start, and why."""


@dataclass(slots=True, eq=False)
class NodeView:
    """One node. `machine`: None until its node actor has told; `cordoned`: why nothing new starts there; `held`: what
    of it sandboxes hold, `others`: what neither slots nor sandboxes hold; `starting`: slots that start there, and
    `changing`: sandboxes that come or go; `young`: those that have just come, and `short_lately`: whether such go at
    once there; `load`: which part of it sandboxes hold: the largest of its resources' parts, 0 to 1."""

    id: str
    total: Amount
    free: Amount
    region: str | None = None
    zone: str | None = None
    machine: Machine | None = None
    cordoned: str | None = None
    held: Amount = _NOTHING
    others: Amount = _NOTHING
    starting: int = 0
    changing: int = 0
    young: int = 0
    short_lately: bool = False
    load: float = field(init=False)

    def __post_init__(self) -> None:
        self.hold(self.held)

    def hold(self, held: Amount) -> None:
        """Sandboxes hold so much from now on. Each choice of a node compares the loads of hundreds."""
        self.held = held
        self.load = dominant_share(held, self.total)

    @property
    def busy(self) -> bool:
        """Whether so much starts or changes there that another slot would only be in the way."""
        about_to_go = self.young if self.short_lately else 0
        return self.starting + self.changing + about_to_go >= self._at_once

    @property
    def crowded(self) -> bool:
        """Whether as many slots start there as may at once."""
        return self.starting >= self._at_once

    @property
    def _at_once(self) -> int:
        return starts_at_once(1 if self.machine is None else self.machine.cores)

    @property
    def character(self) -> tuple[object, ...]:
        """All of it that decides what may run there."""
        return self.total, self.region, self.zone, self.machine, self.cordoned


@dataclass(slots=True)
class NodeLedger:
    """The nodes by id. `version`: another one once nodes have come, gone or changed other than in what is free;
    `freed`: another one once more may be free."""

    nodes: dict[str, NodeView] = field(default_factory=dict)
    total: Amount = _NOTHING
    version: int = 0
    freed: int = 0

    def update(
        self,
        rooms: Mapping[str, NodeRoom],
        machines: Mapping[str, Machine],
        cordoned: Mapping[str, str],
        *,
        held: Iterable[Placed],
        idle: Iterable[Placed],
        making: Iterable[Placed],
        ended: Iterable[Placed],
    ) -> None:
        """Takes in Ray's figures, and what the node actors told. `held`, `idle`: the slots that run, with and without a
        sandbox; `making`: those that were asked for on a node; `ended`: those that ended so lately that Ray may still
        count them."""
        holding, idling, asking, gone = _sums(held), _sums(idle), _sums(making), _sums(ended)
        before, self.nodes, self.total = self.nodes, {}, _NOTHING
        for node_id, room in rooms.items():
            known = before.get(node_id)
            sandboxes, asked = holding.get(node_id, _NOTHING), asking.get(node_id, _NOTHING)
            ours = sandboxes + idling.get(node_id, _NOTHING)
            beyond = room.total - room.free - ours
            least = beyond - asked - gone.get(node_id, _NOTHING)
            node = NodeView(node_id, room.total, _NOTHING, room.region, room.zone)
            node.machine, node.cordoned = machines.get(node_id), cordoned.get(node_id)
            if known is not None and node.character == known.character:
                node = known
            else:
                if known is not None:
                    node.starting, node.changing = known.starting, known.changing
                    node.young, node.short_lately = known.young, known.short_lately
                self.version += 1
            node.others = (_NOTHING if known is None else known.others).between(least, beyond)
            node.free = room.total - ours - asked - node.others
            node.hold(sandboxes)
            self.nodes[node_id] = node
            self.total += room.total
        self.version += before.keys() != self.nodes.keys()
        self.freed += 1

    def take(self, node_id: str | None, shape: SlotShape) -> None:
        """A slot is being made there."""
        if (node := self.nodes.get(node_id or "")) is not None:
            node.free = node.free.minus(shape)

    def give_back(self, node_id: str | None, shape: SlotShape) -> None:
        """A slot there has ended."""
        if (node := self.nodes.get(node_id or "")) is not None:
            node.free = node.free.plus(shape)
            self.freed += 1

    def count_starting(self, node_id: str | None, change: int) -> None:
        """One slot more (1) or less (-1) starts there."""
        if (node := self.nodes.get(node_id or "")) is not None:
            node.starting = max(0, node.starting + change)

    def count_changing(self, node_id: str | None, change: int) -> None:
        """One sandbox more (1) or less (-1) comes or goes there."""
        if (node := self.nodes.get(node_id or "")) is not None:
            node.changing = max(0, node.changing + change)

    def count_young(self, node_id: str | None, change: int) -> None:
        """One sandbox more (1) or less (-1) there has just come."""
        if (node := self.nodes.get(node_id or "")) is not None:
            node.young = max(0, node.young + change)

    def note_short(self, node_id: str, *, lately: bool) -> None:
        """Whether a sandbox that had just come went from there lately."""
        if (node := self.nodes.get(node_id)) is not None:
            node.short_lately = lately

    def hold(self, node_id: str | None, shape: SlotShape) -> None:
        """A slot there holds a sandbox."""
        if (node := self.nodes.get(node_id or "")) is not None:
            node.hold(node.held.plus(shape))

    def release(self, node_id: str | None, shape: SlotShape) -> None:
        """A slot there holds none any more."""
        if (node := self.nodes.get(node_id or "")) is not None:
            node.hold(node.held.minus(shape))


def starts_at_once(cores: float) -> int:
    """Slots that may start on a node, and sandboxes that may come or go there before another slot does.

    A slot's start is half a second of a core: more at once come up no sooner, and let all else there wait. And where
    that many sandboxes come and go, or are about to go as those before them did, the next slot that comes free is there
    sooner than a new one, which would take its core's time from them. Two at least: one may hang.
    """
    return max(2, int(cores))


def dominant_share(used: Amount, total: Amount) -> float:
    """The largest part of any resource, 0 to 1."""
    cpu = used.cpu / total.cpu if total.cpu > 0 else 0.0
    memory = used.memory / total.memory if total.memory > 0 else 0.0
    gpu = used.gpu / total.gpu if total.gpu > 0 else 0.0
    return max(cpu, memory, gpu)


def _sums(slots: Iterable[Placed]) -> dict[str, Amount]:
    sums: dict[str, list[float]] = {}
    for node_id, shape in slots:
        if node_id is not None:
            each = sums.get(node_id)
            if each is None:
                each = sums[node_id] = [0.0, 0.0, 0.0]
            each[0] += shape.cpu
            each[1] += shape.memory
            each[2] += shape.gpu
    return {node_id: Amount(*each) for node_id, each in sums.items()}
