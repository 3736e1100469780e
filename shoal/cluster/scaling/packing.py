"""How many machines of which type hold what waits. Pure.

First what is there is filled, then new machines are opened: in the regions that the sandbox prefers, else in the order
of the file; within a region the cheapest type, and a machine with GPUs only for those who ask for one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from shoal.model.capacity import NodeType, WaitingSandboxes


@dataclass(slots=True)
class Bin:
    """Room on one machine. `id`: its own, or empty for one that is only planned."""

    type: NodeType
    cpu: float
    memory: float
    gpu: float
    id: str = ""
    used: bool = False


@dataclass(slots=True)
class Packed:
    """`wanted`: new machines by type; `filled`: the ids of the machines at hand that are needed; `unmet`: what waits
    for a type that may not be launched now, with how many."""

    wanted: Counter[str] = field(default_factory=Counter)
    filled: set[str] = field(default_factory=set)
    unmet: list[tuple[WaitingSandboxes, int]] = field(default_factory=list)


def whole(kind: NodeType, machine_id: str = "") -> Bin:
    """An empty machine of a type."""
    return Bin(kind, kind.cpu, kind.memory, kind.gpu, machine_id)


def pack(
    waiting: Iterable[WaitingSandboxes],
    bins: Sequence[Bin],
    types: Sequence[NodeType],
    may_open: Callable[[str, Counter[str]], bool],
    price: Callable[[str], float],
) -> Packed:
    """Where all that waits would go. `types`: in the order of the file; `may_open(type, wanted so far)`: whether one
    more of it may be launched; `price`: of a type by its name."""
    packed = Packed()
    room = list(bins)
    # Those that the fewest types would hold come first: others would take the room that is being launched for them.
    # Then the largest: small ones fill what is left.
    for each in sorted(waiting, key=lambda w: (len(suitable(w, types)), -w.gpu, -w.cpu, -w.memory)):
        left = each.count
        for at in room:
            if left == 0:
                break
            left -= _put(each, left, at, packed)
        for kind in _preferred(each, types, price):
            while left > 0 and may_open(kind.name, packed.wanted):
                opened = whole(kind)
                put = _put(each, left, opened, packed)
                if put == 0:
                    break
                packed.wanted[kind.name] += 1
                room.append(opened)
                left -= put
        if left > 0:
            packed.unmet.append((each, left))
    return packed


def suits(each: WaitingSandboxes, kind: NodeType) -> bool:
    """Whether an empty machine of the type would hold one."""
    return (
        (not each.regions or kind.region in each.regions)
        and (each.zone is None or kind.zone is None or each.zone == kind.zone)
        and each.runtime in kind.runtimes
        and each.gpu <= kind.gpu
        and each.cpu <= kind.cpu
        and each.memory <= kind.memory
    )


def suitable(each: WaitingSandboxes, types: Sequence[NodeType]) -> list[NodeType]:
    """The types of which an empty machine would hold one."""
    return [kind for kind in types if suits(each, kind)]


def _put(each: WaitingSandboxes, most: int, at: Bin, packed: Packed) -> int:
    """Puts as many there as fit, up to `most`; how many."""
    if not suits(each, at.type):
        return 0
    asked = ((each.cpu, at.cpu), (each.memory, at.memory), (each.gpu, at.gpu))
    # A thousandth for what adding up fractions loses.
    fits = min(most, *(math.floor(has / wants + 1e-3) for wants, has in asked if wants > 0), most)
    if fits <= 0:
        return 0
    at.cpu -= fits * each.cpu
    at.memory -= fits * each.memory
    at.gpu -= fits * each.gpu
    at.used = True
    if at.id:
        packed.filled.add(at.id)
    return fits


def _preferred(each: WaitingSandboxes, types: Sequence[NodeType], price: Callable[[str], float]) -> list[NodeType]:
    order = {name: number for number, name in enumerate(dict.fromkeys(kind.region for kind in types))}
    if each.regions:
        order = {name: number for number, name in enumerate(each.regions)}
    return sorted(
        suitable(each, types),
        key=lambda kind: (order.get(kind.region, len(order)), kind.gpu > each.gpu == 0, price(kind.name)),
    )
