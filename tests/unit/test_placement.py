"""Where a slot is made, what it waits for otherwise, what of a node is free, and whose turn it is: all pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from shoal.actors.controller.capacity import LaunchableNodes
from shoal.actors.controller.fair_share import fairest
from shoal.actors.controller.ledger import NodeLedger, NodeView
from shoal.actors.controller.machine import Machine
from shoal.actors.controller.placement import OnNode, Request, Selector, Wait, choose, tiers
from shoal.actors.controller.room import Amount, NodeRoom
from shoal.model.capacity import Capacity, NodeType
from shoal.model.spec import SlotShape

ONE = SlotShape(1.0, 1024)
ANY = Request(ONE)
EU_US = Request(ONE, regions=("eu", "us"))
GPU = Request(SlotShape(1.0, 1024, 1))


def node(
    name: str, free: float = 0.0, *, region: str | None = None, zone: str | None = None, cordoned: str | None = None,
    held: float = 0.0, gpu: int = 0, runtimes: tuple[str, ...] = ("runc",), cores: float = 4.0,
) -> NodeView:  # fmt: skip
    """A node of 4 cores and 4 GiB, of which so many cores, and a GiB for each, are free."""
    machine = Machine(cores, 8192, 4.0, 4096, gpu, region, runtimes, 1024, zone)
    total, left = Amount(4.0, 4096, gpu), Amount(free, 1024 * free, gpu)
    return NodeView(name, total, left, region, zone, machine, cordoned, Amount(held, 1024 * held))


def kind(region: str, **changes: object) -> NodeType:
    return replace(NodeType(f"{region}-small", 4, 8192, region=region, max=2), **changes)  # type: ignore[arg-type]


@dataclass
class Case:
    about: str
    request: Request
    nodes: list[NodeView]
    chosen: str | None = None
    waits_in: tuple[str, ...] = ()
    capacity: Capacity = field(default_factory=Capacity)
    not_on: tuple[str, ...] = ()


BOTH = Capacity((kind("eu"), kind("us")))
CASES = [
    Case("packed on the fullest that has room", ANY, [node("a", 4), node("b", 2, held=2), node("c", 0.5, held=3)], "b"),
    Case("spread to the emptiest", replace(ANY, spread=True), [node("a", 2, held=2), node("b", 3, held=1)], "b"),
    Case("devices are left to those that want them", ANY, [node("g", 2, held=2, gpu=1), node("a", 4)], "a"),
    Case("but do not lie idle if nothing else is free", ANY, [node("g", 2, gpu=1), node("a", 0)], "g"),
    Case("a device", GPU, [node("a", 4), node("g", 1, gpu=1)], "g"),
    Case("the preferred region, though another is fuller", EU_US, [node("u", 1, region="us", held=3),
         node("e", 4, region="eu")], "e"),
    Case("the next region where the first is full and none can come", EU_US, [node("e", 0, region="eu"),
         node("u", 4, region="us")], "u"),
    Case("room that is there before a node that may come", EU_US, [node("e", 0, region="eu"),
         node("u", 4, region="us")], "u", capacity=BOTH),
    Case("a node of the preferred region where none has room", EU_US, [node("e", 0, region="eu"),
         node("u", 0, region="us")], waits_in=("eu",), capacity=BOTH),
    Case("the next region where the first has no capacity", EU_US, [node("e", 0, region="eu"),
         node("u", 4, region="us")], "u", capacity=replace(BOTH, exhausted={"eu": 200.0})),
    Case("a node of the next region where the first has no capacity", EU_US, [node("e", 0, region="eu")],
         waits_in=("us",), capacity=replace(BOTH, exhausted={"eu": 200.0})),
    Case("all regions where none has capacity", EU_US, [node("e", 0, region="eu")], waits_in=("eu", "us"),
         capacity=replace(BOTH, exhausted={"eu": 200.0, "us": 200.0})),
    Case("as many nodes run as may", EU_US, [], waits_in=("us",), capacity=replace(BOTH, running={"eu-small": 2})),
    Case("never on a cordoned node, nor later", ANY, [node("a", 4, cordoned="kernel"), node("b", 0)], not_on=("a",)),
    Case("nor where the runtime is missing", replace(ANY, runtime="runsc"), [node("a", 4)], not_on=("a",)),
    Case("nor where its limit is above the machine's", replace(ANY, cores=8.0), [node("a", 4), node("b", 4, cores=8)],
         "b"),
    Case("the zone", replace(ANY, zone="eu-b"), [node("a", 4, zone="eu-a"), node("b", 1, zone="eu-b")], "b"),
    Case("a type that is too small brings nothing", Request(SlotShape(8.0, 1024), regions=("eu",)), [],
         waits_in=("eu",), capacity=BOTH),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.about)
def test_where(case: Case) -> None:
    outlook = partial(LaunchableNodes(case.capacity).outlook, now=100.0)
    choice = choose(case.request, tiers(case.request, case.nodes), outlook)
    if case.chosen is not None:
        assert choice == OnNode(case.chosen)
        return
    assert isinstance(choice, Wait)
    assert choice.selector == Selector(case.waits_in, case.request.zone, case.not_on)
    assert all(region in choice.reason for region in case.waits_in)


@dataclass(frozen=True)
class Caller:
    environment: str
    since: float


def test_whose_turn_it_is() -> None:
    total = Amount(100, 100_000)
    used = {"many": Amount(10, 1000), "large": Amount(1, 40_000), "few": Amount(2, 2000)}
    line = [Caller("many", 1), Caller("large", 2), Caller("few", 4), Caller("few", 3), Caller("new", 9)]
    served = []
    while (caller := fairest(line, used, total)) is not None:
        served.append((caller.environment, caller.since))
        line.remove(caller)
    assert served == [("new", 9), ("few", 3), ("few", 4), ("many", 1), ("large", 2)]
    assert fairest([Caller("a", 2), Caller("b", 1)], {}, Amount()) == Caller("b", 1)


class TestLedger:
    """A node of 4 cores with one slot of 1 core that runs."""

    def update(self, ledger: NodeLedger, free: float, *, making: int = 0, ended: int = 0, idle: int = 0) -> float:
        """Ray says so many cores are free. What the ledger says."""
        rooms = {"a": NodeRoom(Amount(4, 4096), Amount(free, 1024 * free))}
        slots = [("a", ONE)]
        ledger.update(rooms, {}, {}, held=slots, idle=slots * idle, making=slots * making, ended=slots * ended)
        return ledger.nodes["a"].free.cpu

    def test_what_is_being_made_is_taken_whether_ray_knows_or_not(self) -> None:
        for free in (3.0, 2.0):
            assert self.update(NodeLedger(), free, making=1) == 2.0

    def test_what_has_ended_is_free_whether_ray_knows_or_not(self) -> None:
        for free in (2.0, 3.0):
            assert self.update(NodeLedger(), free, ended=1) == 3.0

    def test_what_others_take_is_not_ours_to_give(self) -> None:
        ledger = NodeLedger()
        assert self.update(ledger, 1.0) == 1.0
        # It is not known whether Ray counts the new one already: the others' part stays what it was.
        assert self.update(ledger, 1.0, making=1) == 0.0
        assert self.update(ledger, 0.0, making=1) == 0.0
        assert self.update(ledger, 2.0, idle=1) == 2.0, "they have left"

    def test_between_rays_figures_it_goes_on_by_itself(self) -> None:
        ledger = NodeLedger()
        self.update(ledger, 3.0)
        ledger.take("a", ONE)
        ledger.hold("a", ONE)
        assert (ledger.nodes["a"].free.cpu, ledger.nodes["a"].load) == (2.0, 0.5)
        ledger.release("a", ONE)
        ledger.give_back("a", ONE)
        ledger.take("gone", ONE)
        assert (ledger.nodes["a"].free.cpu, ledger.nodes["a"].load) == (3.0, 0.25)
