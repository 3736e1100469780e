"""Decides which idle slots must end so that those fit for which callers wait. Pure.

A waiting caller's slot may be

    about to be placed   a node has room for it: Ray will see it too
    starting             some node has as much taken that no known slot holds: its worker may be coming up there
    stuck                neither; or what is taken is another program's, since no slot has started for `STALL_S`

and only for one that is stuck do idle slots end: the oldest of one node, no more than make the room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from shoal.actors.controller.placement import Request, Tier
from shoal.actors.controller.room import Amount
from shoal.actors.controller.slot import Slot
from shoal.model.spec import SlotShape

STALL_S = 10.0
"""Twenty times what a worker takes to start."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A caller that waits for a slot. `stalled_s`: seconds since it came, or since any slot has last started."""

    request: Request
    stalled_s: float


def idle_to_end(
    waiting: Iterable[Waiting], tiers: Callable[[Request], Iterable[Tier]], idle: Sequence[Slot]
) -> list[Slot]:
    """The idle slots that must end. `waiting`: who comes first, first; `tiers`: the nodes for a request; `idle`: oldest
    first."""
    free: dict[str, Amount] = {}
    starting: dict[str, Amount] = {}
    places_of: dict[Request, list[str]] = {}
    by_node: dict[str, list[Slot]] = {}
    for slot in idle:
        by_node.setdefault(slot.node_id or "", []).append(slot)
    ending: list[Slot] = []
    hopeless: set[Request] = set()
    for caller in waiting:
        request, shape = caller.request, caller.request.shape
        if request in hopeless:
            continue
        places = places_of.get(request)
        if places is None:
            nodes = [node for tier in tiers(request) for node in tier.nodes]
            places = places_of[request] = [node.id for node in nodes]
            for node in nodes:
                free.setdefault(node.id, node.free)
                starting.setdefault(node.id, node.others)
        if _deduct(shape, free, places):
            continue
        if caller.stalled_s < STALL_S and _deduct(shape, starting, places):
            continue
        making_room = _fewest(shape, free, places, by_node)
        if not making_room:
            hopeless.add(request)
            continue
        node_id = making_room[0].node_id
        assert node_id is not None
        for slot in making_room:
            by_node[node_id].remove(slot)
            free[node_id] = free[node_id].plus(slot.shape)
        free[node_id] = free[node_id].minus(shape)
        ending += making_room
    return ending


def _deduct(shape: SlotShape, amounts: dict[str, Amount], places: Iterable[str]) -> bool:
    """Takes it where there is as much; whether there was."""
    for node in places:
        if amounts[node].covers(shape):
            amounts[node] = amounts[node].minus(shape)
            return True
    return False


def _fewest(
    shape: SlotShape, free: Mapping[str, Amount], places: Iterable[str], idle: Mapping[str, Sequence[Slot]]
) -> list[Slot]:
    """The fewest idle slots of one node whose end makes room there; none where that would not be enough. A free one
    of the very shape makes no room: whoever waits for it would have got it."""
    found: list[Slot] = []
    for node in places:
        amount, chosen = free[node], list[Slot]()
        for slot in idle.get(node, ()):
            if slot.shape != shape or slot.prepared is not None:
                amount = amount.plus(slot.shape)
                chosen.append(slot)
                if amount.covers(shape):
                    if not found or len(chosen) < len(found):
                        found = chosen
                    break
    return found
