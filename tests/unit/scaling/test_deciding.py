"""What scaling decides, with a passed clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoal.cluster.scaling.backoff import Outcome
from shoal.cluster.scaling.deciding import IDLE, Memory, decide
from shoal.cluster.scaling.spec import region_of
from tests.unit.scaling.worlds import kind, limits, node, seen, waiting


def refusal(number: int, at: float, type_name: str = "eu.cpu", what: str = "no_capacity", launched: int = 0) -> Outcome:
    return Outcome(number, type_name, at, launched, what, "told so")


def test_what_waits_is_launched_in_the_first_region() -> None:
    decision, _ = decide(limits(), Memory(), seen(waiting=(waiting(9),)))
    assert decision.wanted == {"eu.cpu": 3}, "four of a core on each"
    assert decision.least == {"eu.cpu": 3, "us.cpu": 0}
    assert decision.most == {"eu.cpu": 10, "us.cpu": 10}


def test_the_order_of_the_sandbox_comes_before_that_of_the_file() -> None:
    decision, _ = decide(limits(), Memory(), seen(waiting=(waiting(regions=("us", "eu")),)))
    assert decision.wanted == {"us.cpu": 1}


def test_nothing_is_launched_twice_for_the_same_demand() -> None:
    on_the_way = seen(
        node("a", node_id=None),  # starts
        node("b"),  # has joined, and nothing is on it yet
        launching={"eu.cpu": 1},
        waiting=(waiting(12),),
    )
    decision, _ = decide(limits(), Memory(), on_the_way)
    assert decision.wanted == {}
    more = replace(on_the_way, waiting=(waiting(13),))
    assert decide(limits(), Memory(), more)[0].wanted == {"eu.cpu": 1}


def test_what_has_only_just_begun_to_wait_is_about_to_start() -> None:
    decision, _ = decide(limits(), Memory(), seen(waiting=(waiting(9, oldest_s=0.5),)))
    assert decision.wanted == {}


def test_a_burst_is_not_overprovisioned() -> None:
    sizes = (waiting(2000, cpu=0.125, memory=128), waiting(40, cpu=2.5, memory=1024), waiting(100))
    needed = 2000 * 0.125 + 40 * 2.5 + 100
    decision, _ = decide(limits(kind("eu.cpu", max=1000)), Memory(), seen(waiting=sizes))
    assert needed / 4 <= decision.wanted["eu.cpu"] <= 1.2 * needed / 4


@pytest.mark.parametrize("choosy_first", [True, False])
def test_who_has_least_choice_keeps_the_room_that_comes_for_them(choosy_first: bool) -> None:
    both = (waiting(8, regions=("eu",)), waiting(8))
    on_the_way = seen(launching={"eu.cpu": 2, "us.cpu": 2}, waiting=both if choosy_first else both[::-1])
    assert decide(limits(), Memory(), on_the_way)[0].wanted == {}


def test_a_gpu_machine_is_only_for_those_who_ask_for_one_unless_there_is_nothing_else() -> None:
    both = limits(kind("eu.gpu", gpu=1), kind("eu.cpu"))
    assert decide(both, Memory(), seen(waiting=(waiting(),)))[0].wanted == {"eu.cpu": 1}
    assert decide(both, Memory(), seen(waiting=(waiting(gpu=1),)))[0].wanted == {"eu.gpu": 1}
    closed = Memory(outcome=0)
    full = seen(waiting=(waiting(),), outcomes=(refusal(1, 999),))
    assert decide(both, closed, full)[0].wanted == {"eu.gpu": 1}


def test_a_region_without_capacity_keeps_what_runs_and_the_next_takes_its_place() -> None:
    observed = seen(node("a", sandboxes=4, empty_s=None, free=(0, 0, 0)), waiting=(waiting(4),))
    decision, memory = decide(limits(), Memory(), replace(observed, outcomes=(refusal(1, 1000),)))
    assert decision.most == {"eu.cpu": 1, "us.cpu": 10}, "never below what runs"
    assert decision.wanted == {"us.cpu": 1}
    again, _ = decide(limits(), memory, replace(observed, now=1029.0))
    assert again.most["eu.cpu"] == 1
    tried, _ = decide(limits(), memory, replace(observed, now=1031.0))
    assert tried.most["eu.cpu"] == 10
    assert tried.wanted == {"eu.cpu": 1}


def test_back_off_grows_and_ends_with_a_success() -> None:
    memory, at, pauses = Memory(), 0.0, []
    for number in range(1, 9):
        _, memory = decide(limits(), memory, seen(now=at, outcomes=(refusal(number, at),)))
        pauses.append(memory.closures["eu.cpu"].until - at)
        at = memory.closures["eu.cpu"].until + 1
    assert pauses == [30, 60, 120, 240, 480, 600, 600, 600]
    _, memory = decide(limits(), memory, seen(now=at, outcomes=(Outcome(9, "eu.cpu", at, 3),)))
    assert memory.closures == {}


def test_refusals_that_were_under_way_together_count_once() -> None:
    many = tuple(refusal(number, 1000 + number / 10) for number in range(1, 9))
    _, memory = decide(limits(), Memory(), seen(outcomes=many))
    assert memory.closures["eu.cpu"].times == 1
    _, memory = decide(limits(), memory, seen(now=1100, outcomes=many))
    assert memory.closures["eu.cpu"].times == 1, "each is taken in once"


@pytest.mark.parametrize("what", ["throttled", "region_down", "unauthorized"])
def test_what_concerns_a_region_closes_all_of_its_types(what: str) -> None:
    types = limits(kind("eu.cpu"), kind("eu.big", cpu=16), kind("us.cpu"))
    decision, _ = decide(types, Memory(), seen(outcomes=(refusal(1, 1000, what=what),)))
    assert decision.most == {"eu.cpu": 0, "eu.big": 0, "us.cpu": 10}


def test_a_machine_that_never_joins_closes_its_type_for_longer_each_time() -> None:
    memory, at, pauses = Memory(), 0.0, []
    for number in range(3):
        launched = (Outcome(number + 1, "eu.cpu", at, 1),)
        _, memory = decide(limits(), memory, seen(node(f"m{number}", node_id=None), now=at, outcomes=launched))
        _, memory = decide(limits(), memory, seen(now=at + 600, outcomes=launched))
        pauses.append(memory.closures["eu.cpu"].until - (at + 600))
        at = memory.closures["eu.cpu"].until + 1
    assert pauses == [60, 120, 240]
    _, memory = decide(limits(), memory, seen(node("good", node_id=None), now=at))
    _, memory = decide(limits(), memory, seen(node("good"), now=at + 60))
    assert memory.closures == {}, "one joined"


def test_a_machine_that_starts_is_not_counted_on_once_another_never_joined() -> None:
    """Ray launches one more in the very round in which it gives the first up."""
    _, memory = decide(limits(), Memory(), seen(node("a", node_id=None)))
    decision, _ = decide(limits(), memory, seen(node("b", node_id=None), waiting=(waiting(),)))
    assert decision.wanted == {"us.cpu": 1}


def test_a_node_that_vanishes_is_no_failed_launch() -> None:
    _, memory = decide(limits(), Memory(), seen(node("a")))
    _, memory = decide(limits(), memory, seen())
    assert memory.closures == {}


def test_a_node_whose_machine_outlives_it_was_no_failed_launch_either() -> None:
    """As after it has left: Ray ends first, then the machine."""
    _, memory = decide(limits(), Memory(), seen(node("a")))
    lost = seen(node("a", node_id=None), waiting=(waiting(),))
    decision, memory = decide(limits(), memory, lost)
    assert decision.wanted == {"eu.cpu": 1}, "no room comes of it"
    _, memory = decide(limits(), memory, seen())
    assert memory.closures == {}


def test_limits_of_region_cluster_and_cost_hold_together() -> None:
    demand = (waiting(400),)
    of_region = limits(regions={"eu": 3})
    assert decide(of_region, Memory(), seen(waiting=demand))[0].wanted == {"eu.cpu": 3, "us.cpu": 10}
    of_cluster = limits(max_nodes=5)
    decision, _ = decide(of_cluster, Memory(), seen(node("a", sandboxes=1, free=(0, 0, 0)), waiting=demand))
    assert sum(decision.most.values()) == 5
    of_cost = limits(max_cost=2.1, prices={"eu.cpu": 0.5, "us.cpu": 0.7})
    decision, _ = decide(of_cost, Memory(), seen(waiting=demand))
    assert decision.most == {"eu.cpu": 4, "us.cpu": 0}
    assert len(decision.unmet) == 1
    assert "max_cost_per_hour" in decision.unmet[0][2]


def test_the_cost_cap_is_never_passed_whichever_machines_ray_chooses() -> None:
    of_cost = limits(max_cost=10.0, prices={"eu.cpu": 1.0, "us.cpu": 3.0})
    for running in range(11):
        machines = [node(f"m{number}", sandboxes=1, free=(0, 0, 0)) for number in range(running)]
        decision, _ = decide(of_cost, Memory(), seen(*machines, waiting=(waiting(3, regions=("us",)),)))
        assert sum(of_cost.prices[name] * most for name, most in decision.most.items()) <= 10.0
        assert decision.most["eu.cpu"] >= running
        assert decision.wanted == ({"us.cpu": 1} if running <= 7 else {})


def test_a_lower_limit_ends_nothing() -> None:
    busy = [node(f"m{number}", sandboxes=1, empty_s=None) for number in range(5)]
    decision, _ = decide(limits(kind("eu.cpu", max=2), max_nodes=1), Memory(), seen(*busy))
    assert decision.most == {"eu.cpu": 5}
    gone, _ = decide(limits(kind("us.cpu")), Memory(), seen(*busy))
    assert gone.most == {"us.cpu": 10, "eu.cpu": 5}, "a type that is no longer in the file"
    assert not decision.cordon


def test_an_idle_node_is_cordoned_then_leaves_and_is_told_once() -> None:
    memory = Memory()
    decision, memory = decide(limits(), memory, seen(node("a", empty_s=59.0)))
    assert decision.cordon == ()
    decision, memory = decide(limits(), memory, seen(node("a", empty_s=60.0)))
    assert (decision.cordon, decision.leave) == (("node-a",), ())
    cordoned = node("a", empty_s=61.0, cordoned=IDLE)
    decision, memory = decide(limits(), memory, seen(cordoned))
    assert decision.leave == ("node-a",)
    decision, memory = decide(limits(), memory, seen(cordoned, now=1001.0))
    assert decision.leave == ()
    assert decision.least["eu.cpu"] == 0, "or Ray would keep it"
    assert decision.most["eu.cpu"] >= 1
    decision, memory = decide(limits(), memory, seen(cordoned, now=1200.0))
    assert decision.leave == ("node-a",), "it did not go: again"


def test_what_came_before_the_cordon_took_effect_stays() -> None:
    decision, _ = decide(limits(), Memory(), seen(node("a", sandboxes=1, empty_s=None, cordoned=IDLE)))
    assert (decision.uncordon, decision.leave) == (("node-a",), ())


def test_new_demand_takes_a_cordoned_node_back_before_it_launches_one() -> None:
    decision, _ = decide(limits(), Memory(), seen(node("a", empty_s=90.0, cordoned=IDLE), waiting=(waiting(),)))
    assert (decision.uncordon, decision.wanted) == (("node-a",), {})


def test_a_node_that_has_left_takes_nothing_more() -> None:
    memory = Memory(left={"node-a": 999.0})
    decision, _ = decide(limits(), memory, seen(node("a", empty_s=90.0, cordoned=IDLE), waiting=(waiting(),)))
    assert (decision.uncordon, decision.leave) == ((), ())
    assert decision.wanted == {"eu.cpu": 1}
    assert decision.least["eu.cpu"] == 1, "the new one; the old one is to go"


def test_a_minimum_stays() -> None:
    idle = [node(f"m{number}", empty_s=100.0 + number) for number in range(4)]
    decision, _ = decide(limits(least={"eu.cpu": 3}), Memory(), seen(*idle))
    assert decision.cordon == ("node-m3",), "the one that is empty for longest"
    assert decision.least["eu.cpu"] == 3


def test_what_a_person_cordoned_is_left_alone() -> None:
    decision, _ = decide(limits(), Memory(), seen(node("a", empty_s=1e6, cordoned="being repaired")))
    assert (decision.cordon, decision.uncordon, decision.leave) == ((), (), ())


def test_nothing_is_taken_away_while_the_controller_does_not_answer() -> None:
    blind = seen(node("a", sandboxes=None, empty_s=None, cordoned=IDLE), node("b", empty_s=1e6), waiting=None)
    decision, _ = decide(limits(), Memory(), blind)
    assert (decision.cordon, decision.leave) == ((), ())
    assert decision.most["eu.cpu"] >= 2


def test_demand_that_comes_and_goes_does_not_make_it_flap() -> None:
    """A sandbox every 50 s that runs for 5 s keeps its node, and launches no second one."""
    memory, empty_since, launched = Memory(), 0.0, 0
    for now in range(1000):
        busy = now % 50 < 5
        empty_since = now if busy else empty_since
        asks = (waiting(),) if now % 50 == 0 and now == 0 else ()
        machine = node("a", sandboxes=int(busy), empty_s=None if busy else now - empty_since)
        decision, memory = decide(limits(), memory, seen(machine, now=float(now), waiting=asks))
        launched += sum(decision.wanted.values())
        assert (decision.cordon, decision.leave) == ((), ())
    assert launched == 0


def test_a_spot_notice_drains_once() -> None:
    observed = seen(node("a", sandboxes=2, empty_s=None), node("b"), notices={"a": 110.0, "gone": 5.0})
    decision, memory = decide(limits(), Memory(), observed)
    assert [(each.node_id, each.seconds) for each in decision.drain] == [("node-a", 110.0)]
    decision, memory = decide(limits(), memory, observed)
    assert decision.drain == ()
    empty = seen(node("a", cordoned="the cloud takes it"), node("b"), notices=observed.notices)
    assert decide(limits(), memory, empty)[0].leave == ("node-a",)
    assert decide(limits(), memory, replace(observed, waiting=(waiting(5),)))[0].wanted == {"eu.cpu": 1}, (
        "nothing new goes where the cloud takes the machine away"
    )


def test_what_no_type_holds_is_told() -> None:
    decision, _ = decide(limits(), Memory(), seen(waiting=(waiting(cpu=64.0), waiting(3, regions=("mars",)))))
    assert decision.wanted == {}
    assert [(left, why) for _, left, why in decision.unmet] == [
        (1, "no node type would hold it"),
        (3, "no node type would hold it"),
    ]


def test_a_machine_that_is_ending_counts_for_nothing() -> None:
    decision, _ = decide(limits(kind("eu.cpu", max=1)), Memory(), seen(node("a", ending=True), waiting=(waiting(),)))
    assert decision.wanted == {"eu.cpu": 1}
    assert decision.most == {"eu.cpu": 1}
    assert region_of("eu.cpu") == "eu"
