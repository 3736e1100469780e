"""What is to be done about the cluster's machines. Pure: what is seen and the time come in, a decision comes out.

    up       where Ray may start machines, and how many: `Decision.most`; and how many it should: `Decision.least`
    down     cordon what was empty for a while → leave once nothing is there → Ray takes the idle machine away
    notices  what the cloud will take away is drained

Never is `most` below what there is: Ray would end machines with what runs on them. Nothing is taken away because a
limit became lower: it goes when it is empty.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shoal.cluster.scaling import backoff
from shoal.cluster.scaling.backoff import Closures, Outcome
from shoal.cluster.scaling.packing import Bin, Packed, pack, suitable, suits, whole
from shoal.cluster.scaling.spec import region_of
from shoal.model.capacity import NodeType, WaitingSandboxes

IDLE = "idle: scaling takes it away"
"""Why scaling cordons: what is cordoned for another reason, or by a person, it leaves alone."""

_SETTLED_S = 2.0
"""A sandbox that waits for less is most likely about to start in room that there is."""

_LEFT_S = 120.0
"""A node that was told to leave is told again after so long."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator allows. `types`: in the order of the file; `least`, `prices`: by type; `regions`: the most
    nodes of a region, where it has a limit of its own."""

    types: tuple[NodeType, ...]
    least: Mapping[str, int]
    prices: Mapping[str, float]
    regions: Mapping[str, int]
    max_nodes: int
    max_cost: float | None
    idle_timeout: float

    def type(self, name: str) -> NodeType | None:
        return next((kind for kind in self.types if kind.name == name), None)

    def kept(self, name: str) -> int:
        """The nodes of a type that stay even if they are idle."""
        return self.least.get(name, 0)


@dataclass(frozen=True, slots=True)
class Seen:
    """One machine. `node_id`: Ray's, None before it has joined; `free`: (CPU, memory in MiB, GPU) of a node;
    `sandboxes`: None where the controller does not know the node; `empty_s`: seconds for which it has had none;
    `ending`: it is being taken away."""

    id: str
    type: str
    node_id: str | None = None
    free: tuple[float, float, float] = (0.0, 0.0, 0.0)
    sandboxes: int | None = None
    empty_s: float | None = None
    cordoned: str | None = None
    ending: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """What there is. `launching`: machines that are being asked for, in no list yet; `waiting`: None while the
    controller does not answer; `notices`: seconds until the cloud takes a machine away, by its id."""

    now: float
    machines: tuple[Seen, ...]
    launching: Mapping[str, int] = field(default_factory=dict)
    waiting: tuple[WaitingSandboxes, ...] | None = ()
    outcomes: tuple[Outcome, ...] = ()
    notices: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Memory:
    """What one decision leaves for the next. `unjoined`: type of each machine that has not joined yet; `joined`: those
    that have, even if they are no nodes any more; `left`, `drained`: when a node was told to."""

    closures: Closures = field(default_factory=dict)
    outcome: int = 0
    unjoined: Mapping[str, str] = field(default_factory=dict)
    joined: frozenset[str] = frozenset()
    left: Mapping[str, float] = field(default_factory=dict)
    drained: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Drain:
    """A node that has to be empty in `seconds`."""

    node_id: str
    seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do. `most`, `least`: machines of each type that Ray may, and should, have; `wanted`: those beyond what
    is there; `unmet`: what waits for nothing that could come now, with how many and why."""

    most: Mapping[str, int]
    least: Mapping[str, int]
    wanted: Mapping[str, int] = field(default_factory=dict)
    cordon: tuple[str, ...] = ()
    uncordon: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    drain: tuple[Drain, ...] = ()
    unmet: tuple[tuple[WaitingSandboxes, int, str], ...] = ()


def decide(limits: Limits, memory: Memory, seen: Observation) -> tuple[Decision, Memory]:
    """What is to be done now, and what to remember."""
    memory = _learn(memory, seen)
    living = [machine for machine in seen.machines if not machine.ending]
    count = Counter(machine.type for machine in living)
    count.update(seen.launching)
    budget = Budget(limits, memory.closures, seen.now, count)
    packed = _pack(limits, memory, seen, living, budget)
    going = {machine.id for machine in living if machine.node_id in memory.left}
    staying = Counter(machine.type for machine in living if machine.id not in going)
    staying.update(seen.launching)
    most = budget.most(packed.wanted)
    least = {}
    for name in most:
        needed = staying[name] + packed.wanted[name] if packed.wanted[name] else 0
        least[name] = min(max(limits.kept(name), needed), most[name])
    drain = tuple(_drains(memory, seen))
    memory = replace(memory, drained={**memory.drained, **{each.node_id: seen.now for each in drain}})
    if seen.waiting is None:
        # Who is empty is not known.
        return Decision(most, least, packed.wanted, drain=drain), memory
    cordon, uncordon, leave = _shrink(limits, memory, seen, living, packed)
    memory = replace(memory, left={**memory.left, **dict.fromkeys(leave, seen.now)})
    unmet = tuple((each, left, _why(limits, budget, packed.wanted, each)) for each, left in packed.unmet)
    return Decision(most, least, packed.wanted, cordon, uncordon, leave, drain, unmet), memory


class Budget:
    """How many machines may be added, by the limits of type, region, cluster and cost, and by what is closed."""

    def __init__(self, limits: Limits, closures: Closures, now: float, count: Counter[str]) -> None:
        self._limits = limits
        self._closures = closures
        self._now = now
        self._count = count

    def refuses(self, name: str, added: Counter[str]) -> str | None:
        """Why not one more of a type may be added to `added`; None: it may."""
        room, why = self._room(name, added)
        return None if room > 0 else why

    def cost(self, count: Mapping[str, int]) -> float:
        """Of an hour."""
        return sum(self._limits.prices.get(name, 0.0) * number for name, number in count.items())

    def most(self, wanted: Counter[str]) -> dict[str, int]:
        """How many machines of each type there may be: what there is and what is wanted, then as many as the limits
        leave, in the order of the file, for demand that only Ray sees."""
        added = Counter(wanted)
        for kind in self._limits.types:
            added[kind.name] += self._room(kind.name, added)[0]
        # A type that is no longer in the file stays as long as it has machines.
        names = dict.fromkeys([*(kind.name for kind in self._limits.types), *self._count])
        return {name: self._count[name] + added[name] for name in names}

    def _room(self, name: str, added: Counter[str]) -> tuple[int, str]:
        """How many more of a type may be added to `added`, and which limit says so."""
        kind = self._limits.type(name)
        if kind is None:
            return 0, "it is no longer in the file"
        shut = backoff.closed(self._closures, name, self._now)
        if shut is not None:
            return 0, f"{shut.kind}: {shut.message}" if shut.message else shut.kind
        region, count = region_of(name), self._count
        room = [(kind.max - count[name] - added[name], f"max of {name} is {kind.max}")]
        most = self._limits.regions.get(region)
        if most is not None:
            room.append((most - _of_region(count, region) - _of_region(added, region), f"max of {region} is {most}"))
        room.append((self._limits.max_nodes - count.total() - added.total(), f"max_nodes is {self._limits.max_nodes}"))
        price, most_cost = self._limits.prices.get(name, 0.0), self._limits.max_cost
        if most_cost is not None and price > 0:
            # A millionth for what adding up fractions loses.
            left = most_cost - self.cost(count) - self.cost(added) + 1e-6
            room.append((math.floor(left / price), f"max_cost_per_hour is {most_cost:g}"))
        least, why = min(room)
        return max(least, 0), why


def _learn(memory: Memory, seen: Observation) -> Memory:
    """Takes in how launches went, and which machines went without having joined."""
    there = {machine.id: machine for machine in seen.machines}
    lost, joined = [], set()
    for machine_id, name in memory.unjoined.items():
        machine = there.get(machine_id)
        if machine is not None and machine.node_id is not None:
            joined.add(name)
        elif machine is None or machine.ending:
            lost.append(Outcome(0, name, seen.now, 0, backoff.NEVER_JOINED, f"{machine_id} went and never was a node"))
    nodes = {machine.node_id for machine in seen.machines}
    new = sorted((each for each in seen.outcomes if each.number > memory.outcome), key=lambda each: each.number)
    return Memory(
        closures=backoff.take_in(backoff.joined(memory.closures, joined), [*new, *lost]),
        outcome=max((each.number for each in new), default=memory.outcome),
        unjoined={
            each.id: each.type
            for each in seen.machines
            if each.node_id is None and not each.ending and each.id not in memory.joined
        },
        joined=frozenset(each.id for each in seen.machines if each.node_id is not None or each.id in memory.joined),
        left={node_id: at for node_id, at in memory.left.items() if node_id in nodes and seen.now - at < _LEFT_S},
        drained={node_id: at for node_id, at in memory.drained.items() if node_id in nodes},
    )


def _pack(limits: Limits, memory: Memory, seen: Observation, living: Sequence[Seen], budget: Budget) -> Packed:
    """What waits, into the nodes that stay, then those that scaling cordoned, those that start, and new ones."""
    staying, cordoned, starting = [], [], []
    for machine in living:
        kind = limits.type(machine.type)
        if kind is None or machine.node_id in memory.left or machine.node_id in memory.drained:
            continue
        if machine.node_id is None:
            if machine.id not in memory.joined and not backoff.doubtful(memory.closures, machine.type, seen.now):
                starting.append(whole(kind, machine.id))
        elif machine.cordoned is None:
            staying.append(Bin(kind, *machine.free, id=machine.id))
        elif machine.cordoned == IDLE:
            cordoned.append(Bin(kind, *machine.free, id=machine.id))
    coming = [
        whole(kind) for name, number in seen.launching.items() if (kind := limits.type(name)) for _ in range(number)
    ]
    waiting = [each for each in seen.waiting or () if each.oldest_s >= _SETTLED_S]
    return pack(
        waiting,
        [*staying, *cordoned, *starting, *coming],
        limits.types,
        lambda name, wanted: budget.refuses(name, wanted) is None,
        lambda name: limits.prices.get(name, 0.0),
    )


def _shrink(
    limits: Limits, memory: Memory, seen: Observation, living: Sequence[Seen], packed: Packed
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """(nodes to cordon, to uncordon, to let leave)."""
    cordon: list[str] = []
    uncordon: list[str] = []
    leave: list[str] = []
    keep = Counter(each.type for each in living if each.node_id not in memory.left and each.cordoned is None)
    for each in sorted(living, key=lambda machine: -(machine.empty_s or 0.0)):
        if each.node_id is None or each.node_id in memory.left:
            continue
        if each.node_id in memory.drained:
            if each.sandboxes == 0:
                leave.append(each.node_id)  # nothing comes there any more, and it costs money
            continue
        kind = limits.type(each.type)
        # What waits and would fit there may come any moment, whatever the packing says.
        needed = each.id in packed.filled or (
            kind is not None and any(suits(waiting, kind) for waiting in seen.waiting or ())
        )
        if each.cordoned == IDLE:
            if needed or each.sandboxes or keep[each.type] < limits.kept(each.type):
                uncordon.append(each.node_id)
                keep[each.type] += 1
            elif each.sandboxes == 0:
                leave.append(each.node_id)
        elif each.cordoned is None and not needed and _idle(each, limits) and keep[each.type] > limits.kept(each.type):
            cordon.append(each.node_id)
            keep[each.type] -= 1
    return tuple(cordon), tuple(uncordon), tuple(leave)


def _idle(machine: Seen, limits: Limits) -> bool:
    return machine.sandboxes == 0 and machine.empty_s is not None and machine.empty_s >= limits.idle_timeout


def _drains(memory: Memory, seen: Observation) -> Iterable[Drain]:
    for machine in seen.machines:
        seconds = seen.notices.get(machine.id)
        if seconds is not None and machine.node_id is not None and machine.node_id not in memory.drained:
            yield Drain(machine.node_id, seconds, "the cloud takes the machine away")


def _why(limits: Limits, budget: Budget, wanted: Counter[str], each: WaitingSandboxes) -> str:
    able = suitable(each, limits.types)
    if not able:
        return "no node type would hold it"
    return "; ".join(f"{kind.name}: {budget.refuses(kind.name, wanted)}" for kind in able)


def _of_region(count: Mapping[str, int], region: str) -> int:
    return sum(number for name, number in count.items() if region_of(name) == region)
