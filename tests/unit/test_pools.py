"""How many a pool keeps ready: over a simulated clock, with takes and makings that come at random."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from shoal.actors.controller.pools import (
    Bounds,
    Demand,
    Kept,
    LateShapes,
    Plan,
    lacking,
    most_within,
    plan,
    plan_all,
    shape_of,
    target,
)
from shoal.model.settings import PoolSettings
from tests.unit.builders import resources, spec

BOUNDS = Bounds(least=2, most=10, linger_s=20.0, max_age_s=600.0)


@dataclass
class Clocked:
    """A pool over a simulated clock. `make_s`: what making one takes."""

    bounds: Bounds = BOUNDS
    make_s: float = 1.0
    now: float = 1000.0
    at_once: int = 100
    blocked: bool = False
    room: int | None = None
    demand: Demand = field(default_factory=Demand)
    ready: dict[str, float] = field(default_factory=dict)
    making: list[tuple[float, float]] = field(default_factory=list)  # (began, done)
    missed: int = 0
    made: int = 0
    ended: int = 0

    @property
    def kept(self) -> Kept:
        return Kept(self.bounds, self.demand, list(self.ready.items()), len(self.making), self.room, self.blocked)

    def take(self) -> None:
        self.demand.note_take(self.now)
        if self.ready:
            del self.ready[next(iter(self.ready))]
        else:
            self.missed += 1

    def turn(self, seconds: float = 1.0) -> Plan:
        self.now += seconds
        for began, done in [one for one in self.making if one[1] <= self.now]:
            self.making.remove((began, done))
            self.ready[f"slot-{self.made}"] = self.now
            self.made += 1
            self.demand.note_made(done - began)
        decided = plan_all({"pool": self.kept}, self.now, self.at_once)["pool"]
        for slot_id in decided.end:
            del self.ready[slot_id]
            self.ended += 1
        self.making += [(self.now, self.now + self.make_s)] * decided.make
        most = self.bounds.most if self.room is None else min(self.bounds.most, self.room)
        assert len(self.ready) + len(self.making) <= max(most, len(self.making)), "over-created"
        return decided

    def turns(self, number: int) -> None:
        for _ in range(number):
            self.turn()


def test_it_fills_to_its_least_and_rests() -> None:
    pool = Clocked()
    pool.turns(5)
    assert (len(pool.ready), pool.making) == (2, [])
    pool.turns(100)
    assert (pool.made, pool.ended) == (2, 0)


def test_what_is_being_made_counts() -> None:
    pool = Clocked(make_s=50.0)
    assert pool.turn().make == 2
    assert [pool.turn().make for _ in range(40)] == [0] * 40


@pytest.mark.parametrize("seed", range(20))
def test_it_never_has_more_than_its_bounds_whatever_is_asked_of_it(seed: int) -> None:
    chance = random.Random(seed)
    pool = Clocked(at_once=chance.randint(1, 20))
    for _ in range(300):
        least = chance.randint(0, 5)
        if chance.random() < 0.05:  # resized; what is being made then may be more than its new bounds
            pool.bounds = Bounds(least, least + chance.randint(0, 20), 20.0, 60.0)
        pool.make_s = chance.uniform(0.1, 10)
        pool.blocked = chance.random() < 0.2
        decided = pool.turn(chance.uniform(0.01, 3))
        assert not (pool.blocked and decided.make)
        assert len(pool.making) <= pool.at_once
        for _ in range(chance.choice([0, 0, 0, 1, 5, 30])):
            pool.take()
    pool.bounds, pool.blocked, pool.make_s = BOUNDS, False, 1.0
    pool.turns(200)
    assert (len(pool.ready), pool.making) == (2, []), "it comes to rest at its least"


def test_a_steady_demand_is_met_by_as_many_as_are_taken_while_one_is_made() -> None:
    pool = Clocked(bounds=Bounds(1, 50, 20.0, 600.0), make_s=4.0)
    for _ in range(60):
        pool.turn(0.5)
        pool.take()  # two a second
    pool.missed = 0
    for _ in range(200):
        pool.turn(0.5)
        pool.take()
    assert pool.missed == 0
    assert 8 <= target(pool.kept, pool.now) <= 12
    assert len(pool.ready) <= 12


def test_a_burst_is_not_answered_by_another_of_its_size() -> None:
    pool = Clocked(bounds=Bounds(20, 200, 20.0, 600.0), make_s=1.0)
    pool.turns(5)
    for _ in range(20):
        pool.take()
    most = 0
    for _ in range(120):
        pool.turn()
        most = max(most, len(pool.ready) + len(pool.making))
    assert most <= 22, "over-provisioned by more than a tenth"
    assert len(pool.ready) == 20


def test_callers_that_wait_come_first() -> None:
    pool = Clocked(blocked=True)
    pool.turns(10)
    assert (pool.ready, pool.making) == ({}, [])
    pool.blocked = False
    pool.turns(5)
    assert len(pool.ready) == 2


def test_a_quota_bounds_it_and_what_is_beyond_it_ends() -> None:
    pool = Clocked(bounds=Bounds(5, 10, 20.0, 600.0), room=3)
    pool.turns(5)
    assert len(pool.ready) == 3
    assert lacking(pool.kept) == 0, "more machines would not help"
    pool.room = 1  # its environment creates sandboxes of another spec
    pool.turn()
    assert len(pool.ready) == 1


def test_a_lower_most_ends_the_oldest_at_once_and_zero_all() -> None:
    pool = Clocked(bounds=Bounds(4, 4, 20.0, 600.0))
    pool.turns(3)
    oldest = list(pool.ready)
    pool.bounds = Bounds(0, 1, 20.0, 600.0)
    assert pool.turn().end == tuple(oldest[:3])
    pool.bounds = Bounds(0, 0, 20.0, 600.0)
    pool.turn()
    assert pool.ready == {}


def test_old_ones_are_replaced_and_there_are_never_fewer_than_the_least() -> None:
    pool = Clocked(bounds=Bounds(2, 4, 20.0, 100.0))
    pool.turns(5)
    before = set(pool.ready)
    for _ in range(120):
        pool.turn()
        assert len(pool.ready) >= 2
    assert len(pool.ready) == 2
    assert not before & set(pool.ready)


def test_old_ones_are_replaced_one_by_one_where_there_is_no_room_for_both() -> None:
    pool = Clocked(bounds=Bounds(2, 2, 20.0, 100.0))
    pool.turns(5)
    before = set(pool.ready)
    for _ in range(120):
        pool.turn()
        assert len(pool.ready) + len(pool.making) >= 1
    assert len(pool.ready) == 2
    assert not before & set(pool.ready)


def test_a_spec_that_cannot_be_made_is_tried_ever_more_rarely() -> None:
    demand, now, tries = Demand(), 0.0, 0
    while now < 600:
        now += 1
        if plan(Kept(BOUNDS, demand, (), 0), now).make:
            tries += 1
            demand.note_failed(now)
    assert 10 <= tries <= 20
    demand.note_made(1.0)
    assert plan(Kept(BOUNDS, demand, (), 0), now).make == 2


def test_pools_share_what_is_made_at_once_by_how_much_they_lack() -> None:
    large, small = Bounds(90, 90, 20.0, 600.0), Bounds(10, 10, 20.0, 600.0)
    pools = {"large": Kept(large, Demand(), (), 0), "small": Kept(small, Demand(), (), 0)}
    plans = plan_all(pools, 0.0, at_once=10)
    assert (plans["large"].make, plans["small"].make) == (9, 1)


def test_shapes_that_were_created_often_lately_are_kept() -> None:
    late = LateShapes(PoolSettings(shapes=2, after=2, linger=10.0))
    shapes = [shape_of(spec(resources=resources(memory_limit=size))) for size in (256, 512, 1024)]
    late.note(shapes[0], 0.0)
    assert late.wanted(0.0) == []
    late.note(shapes[0], 9.0)
    assert late.wanted(9.0) == [shapes[0]]
    late.note(shapes[0], 18.0)
    assert late.wanted(27.0) == [shapes[0]], "once a shape is kept, one create within `linger` is enough"
    for shape in (*shapes, *shapes):
        late.note(shape, 28.0)
    late.note(shapes[1], 29.0)
    late.note(shapes[2], 30.0)
    assert late.wanted(30.0) == [shapes[2], shapes[1]]
    assert late.wanted(41.0) == []
    assert LateShapes(PoolSettings(ready=0)).wanted(0.0) == []


@pytest.mark.parametrize(
    ("left", "most"),
    [([(None, 1.0)], None), ([(3.0, 1.0), (None, 5.0)], 3), ([(3.0, 1.0), (1.0, 0.5)], 2), ([(-1.0, 1.0)], 0)],
)
def test_how_many_fit_into_a_quota(left: list[tuple[float | None, float]], most: int | None) -> None:
    assert most_within(left) == most
