"""The fleet: never a partial list, whatever a cloud says."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shoal.cluster.scaling.contract import (
    CloudError,
    Launched,
    Machine,
    MachineState,
    Misconfigured,
    NoCapacity,
    Notice,
    Order,
    RegionDown,
)
from shoal.cluster.scaling.files import ScalingFiles
from shoal.cluster.scaling.fleet import Fleet


def machine(machine_id: str, type_name: str = "eu.cpu", state: MachineState = MachineState.RUNNING) -> Machine:
    return Machine(machine_id, type_name, state)


@dataclass
class FakeRegion:
    """Remembers calls; `errors`: what the next calls raise."""

    name: str
    there: list[Machine] = field(default_factory=list)
    errors: list[CloudError] = field(default_factory=list)
    calls: list[object] = field(default_factory=list)
    unlisted: bool = False
    settles_s: float = 120.0
    each_s: float = 0.0

    def launch(self, order: Order) -> Launched:
        self.calls.append(order)
        self._fail()
        new = [machine(f"{self.name}-{order.token[:4]}-{n}", order.type) for n in range(order.count)]
        if not self.unlisted:
            self.there += new
        return Launched(new)

    def machines(self) -> Sequence[Machine]:
        self._fail()
        return [*self.there]

    def foreign_machines(self) -> Sequence[str]:
        return []

    def terminate(self, machine_ids: Sequence[str]) -> None:
        self.calls.append(tuple(machine_ids))
        self._fail()

    def notices(self) -> Sequence[Notice]:
        return [Notice(each.id, 60.0) for each in self.there if each.id.endswith("doomed")]

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def ids(machines: Sequence[Machine]) -> list[str]:
    return sorted(each.id for each in machines if each.state is not MachineState.TERMINATING)


def test_a_region_that_does_not_answer_keeps_its_last_known_machines() -> None:
    eu, us = FakeRegion("eu", [machine("a")]), FakeRegion("us", [machine("b", "us.cpu")])
    fleet = Fleet([eu, us])
    assert ids(fleet.refresh()) == ["a", "b"]
    eu.errors = [RegionDown("no route")]
    us.there.append(machine("c", "us.cpu"))
    assert ids(fleet.refresh()) == ["a", "b", "c"]
    state = fleet.state()
    assert state.regions["eu"].failed == "region_down: no route"
    assert (state.outcomes[-1].type, state.outcomes[-1].kind) == ("eu", "region_down")
    assert ids(fleet.refresh()) == ["a", "b", "c"]
    assert fleet.state().regions["eu"].failed is None


def test_what_was_launched_is_listed_before_the_cloud_lists_it_and_not_for_ever() -> None:
    clock = Clock()
    eu = FakeRegion("eu", unlisted=True)
    fleet = Fleet([eu], clock=clock)
    launched = ids(fleet.launch(Order("eu.cpu", 2, "tokn")))
    assert ids(fleet.refresh()) == launched
    clock.now += 119
    assert ids(fleet.refresh()) == launched
    clock.now += 2
    assert ids(fleet.refresh()) == [], "it never was"


def test_what_vanishes_after_it_was_listed_is_gone() -> None:
    eu = FakeRegion("eu")
    fleet = Fleet([eu])
    launched = ids(fleet.launch(Order("eu.cpu", 2, "tokn")))
    assert ids(fleet.refresh()) == launched
    eu.there.pop()
    assert len(fleet.refresh()) == 1


def test_what_was_terminated_is_ending_even_if_the_cloud_lists_it_and_comes_back_if_it_runs_on() -> None:
    clock = Clock()
    eu = FakeRegion("eu", [machine("a"), machine("b")])
    fleet = Fleet([eu], clock=clock)
    fleet.refresh()
    fleet.terminate(["a", "unknown"])
    assert eu.calls == [("a",)]
    assert ids(fleet.state().machines()) == ["b"]
    assert ids(fleet.refresh()) == ["b"]
    clock.now += 121
    assert ids(fleet.refresh()) == ["a", "b"], "for somebody to terminate it again"


def test_a_termination_that_fails_leaves_the_machine_in_the_list_and_tries_the_other_regions() -> None:
    eu, us = FakeRegion("eu", [machine("a")]), FakeRegion("us", [machine("b", "us.cpu")])
    fleet = Fleet([eu, us])
    fleet.refresh()
    eu.errors = [RegionDown("down")]
    with pytest.raises(RegionDown):
        fleet.terminate(["a", "b"])
    assert us.calls == [("b",)]
    assert ids(fleet.state().machines()) == ["a"]


def test_a_lost_answer_is_asked_again_with_the_same_token() -> None:
    eu = FakeRegion("eu", errors=[RegionDown("timed out")])
    fleet = Fleet([eu])
    assert len(fleet.launch(Order("eu.cpu", 1, "tokn"))) == 1
    assert eu.calls == [Order("eu.cpu", 1, "tokn")] * 2


def test_how_launches_went_is_on_record() -> None:
    eu = FakeRegion("eu", errors=[NoCapacity("none of it")])
    fleet = Fleet([eu])
    with pytest.raises(NoCapacity):
        fleet.launch(Order("eu.cpu", 3, "one1"))
    fleet.launch(Order("eu.cpu", 3, "two2"))
    with pytest.raises(Misconfigured):
        fleet.launch(Order("mars.cpu", 3, "two2"))
    outcomes = fleet.state().outcomes
    assert [(each.number, each.kind, each.launched) for each in outcomes] == [(1, "no_capacity", 0), (2, None, 3)]
    assert fleet.state().launching == {}


def test_what_is_being_launched_is_told() -> None:
    asked, may_go = threading.Event(), threading.Event()

    class Slow(FakeRegion):
        def launch(self, order: Order) -> Launched:
            asked.set()
            assert may_go.wait(10)
            raise NoCapacity("after all")

    fleet = Fleet([Slow("eu")])
    errors: list[CloudError] = []

    def launch() -> None:
        try:
            fleet.launch(Order("eu.cpu", 3, "tokn"))
        except CloudError as error:
            errors.append(error)

    thread = threading.Thread(target=launch)
    thread.start()
    assert asked.wait(10)
    assert fleet.state().launching == {"eu.cpu": 3}
    may_go.set()
    thread.join(10)
    assert (len(errors), fleet.state().launching) == (1, {})


def test_a_cloud_that_lists_a_machine_twice_or_in_two_regions() -> None:
    eu = FakeRegion("eu", [machine("a"), machine("a")])
    us = FakeRegion("us", [machine("a"), machine("b", "us.cpu")])
    fleet = Fleet([eu, us])
    assert ids(fleet.refresh()) == ["a", "b"]
    assert ids(fleet.refresh()) == ["a", "b"]


def test_notices_are_told() -> None:
    fleet = Fleet([FakeRegion("eu", [machine("doomed"), machine("a")])])
    fleet.refresh()
    assert [each.machine_id for each in fleet.state().notices] == ["doomed"]


def test_another_process_goes_on_where_one_was_killed(tmp_path: Path) -> None:
    files = ScalingFiles.below(tmp_path)
    eu = FakeRegion("eu", unlisted=True)
    first = Fleet([eu], files.read_fleet(), files.write_fleet)
    launched = ids(first.launch(Order("eu.cpu", 2, "tokn")))
    eu.errors = [RegionDown("down")]
    second = Fleet([eu], files.read_fleet(), files.write_fleet)
    assert ids(second.refresh()) == launched
    assert second.state().outcomes[0].launched == 2
    (files.directory / "fleet.json").write_text("{")
    assert files.read_fleet().machines() == []


def test_a_cloud_is_not_asked_more_often_than_it_bears() -> None:
    clock = Clock()
    eu, us = FakeRegion("eu", each_s=5.0), FakeRegion("us")
    fleet = Fleet([eu, us], clock=clock)
    fleet.refresh()
    eu.there.append(machine("a"))
    us.there.append(machine("b", "us.cpu"))
    assert ids(fleet.refresh()) == ["b"]
    clock.now += 5
    assert ids(fleet.refresh()) == ["a", "b"]
