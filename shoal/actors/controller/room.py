"""Decides which idle slots must end so that those fit for which callers wait. Pure.

Ray tells what is free on each node, not which pending actors it has placed: while the worker of one starts, its
resources are taken and nobody holds them. So a waiting caller's slot may be

    about to be placed   its node has room for it
    starting             some node has as much taken that no known slot holds
    stuck                neither; or what is taken is another program's, since no slot has started for `STALL_S`

and only for one that is stuck do idle slots end: the oldest of one node, no more than make the room.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from shoal.actors.controller.slot import Slot
from shoal.model.spec import SlotShape

STALL_S = 10.0
"""Twenty times what a worker takes to start."""

_EPSILON = 1e-6  # Ray counts in ten thousandths


@dataclass(frozen=True, slots=True)
class Amount:
    """Resources: cores, MiB, devices."""

    cpu: float = 0.0
    memory: float = 0.0
    gpu: float = 0.0

    def covers(self, shape: SlotShape) -> bool:
        return (
            self.cpu + _EPSILON >= shape.cpu
            and self.memory + _EPSILON >= shape.memory
            and self.gpu + _EPSILON >= shape.gpu
        )

    def plus(self, shape: SlotShape, times: int = 1) -> Amount:
        return Amount(self.cpu + times * shape.cpu, self.memory + times * shape.memory, self.gpu + times * shape.gpu)

    def minus(self, shape: SlotShape) -> Amount:
        return self.plus(shape, -1)


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """One node as Ray sees it: what it has, and what of it is free."""

    total: Amount
    free: Amount
    region: str | None = None

    def admits(self, shape: SlotShape) -> bool:
        """Whether a slot of this shape may be placed here when there is room."""
        return shape.region in (None, self.region)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A caller that waits for a slot. `stalled_s`: seconds since it came, or since any slot has last started."""

    shape: SlotShape
    stalled_s: float


def fits(shape: SlotShape, rooms: Mapping[str, NodeRoom]) -> bool:
    """Whether one more slot would be placed at once."""
    return any(room.admits(shape) and room.free.covers(shape) for room in rooms.values())


def with_room_of(rooms: Mapping[str, NodeRoom], ended: Iterable[Slot]) -> Mapping[str, NodeRoom]:
    """The same with what slots held that were just ended, which Ray may still count."""
    result = dict(rooms)
    for slot in ended:
        if slot.node_id in result:
            room = result[slot.node_id]
            result[slot.node_id] = replace(room, free=room.free.plus(slot.shape))
    return result


def with_room_taken(rooms: Mapping[str, NodeRoom], unplaced: Iterable[Slot]) -> Mapping[str, NodeRoom]:
    """The same without what slots will hold that Ray is about to place, each where it would fit."""
    result = dict(rooms)
    for slot in unplaced:
        node = next(
            (node for node, room in result.items() if room.admits(slot.shape) and room.free.covers(slot.shape)), None
        )
        if node is not None:
            result[node] = replace(result[node], free=result[node].free.minus(slot.shape))
    return result


def idle_to_end(
    waiting: Iterable[Waiting], rooms: Mapping[str, NodeRoom], held: Iterable[Slot], idle: Sequence[Slot]
) -> list[Slot]:
    """The idle slots that must end. `waiting`: who has waited longest first; `held`: the slots that hold a sandbox;
    `idle`: oldest first."""
    free = {node: room.free for node, room in rooms.items()}
    starting = {node: _unheld(room, node, (*held, *idle)) for node, room in rooms.items()}
    left, ending = list(idle), list[Slot]()
    for caller in waiting:
        shape = caller.shape
        places = [node for node, room in rooms.items() if room.admits(shape)]
        if _deduct(shape, free, places):
            continue
        if caller.stalled_s < STALL_S and _deduct(shape, starting, places):
            continue
        making_room = _fewest(shape, free, places, left)
        if making_room:
            node = making_room[0].node_id
            assert node is not None
            for slot in making_room:
                left.remove(slot)
                free[node] = free[node].plus(slot.shape)
            free[node] = free[node].minus(shape)
            ending += making_room
    return ending


def _unheld(room: NodeRoom, node: str, known: Iterable[Slot]) -> Amount:
    """What is taken on a node by nothing that is known: by slots that start, or by others' programs."""
    amount = Amount(
        room.total.cpu - room.free.cpu, room.total.memory - room.free.memory, room.total.gpu - room.free.gpu
    )
    for slot in known:
        if slot.node_id == node:
            amount = amount.minus(slot.shape)
    return amount


def _deduct(shape: SlotShape, amounts: dict[str, Amount], places: Iterable[str]) -> bool:
    """Takes it where there is as much; whether there was."""
    for node in places:
        if amounts[node].covers(shape):
            amounts[node] = amounts[node].minus(shape)
            return True
    return False


def _fewest(shape: SlotShape, free: Mapping[str, Amount], places: Iterable[str], idle: Sequence[Slot]) -> list[Slot]:
    """The fewest idle slots of one node whose end makes room there; none where that would not be enough. A free one of
    the very shape makes no room: whoever waits for it would have got it."""
    found: list[Slot] = []
    for node in places:
        amount, chosen = free[node], list[Slot]()
        for slot in idle:
            if slot.node_id == node and (slot.shape != shape or slot.prepared is not None):
                amount = amount.plus(slot.shape)
                chosen.append(slot)
                if amount.covers(shape):
                    if not found or len(chosen) < len(found):
                        found = chosen
                    break
    return found
