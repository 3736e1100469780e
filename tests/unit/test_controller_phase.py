"""A sandbox's phases: every pair of phase and event is either an edge of the table or refused with its history."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from shoal.actors.controller.phase import (
    ACCEPTED,
    ACTIVITY,
    ENDED,
    LAUNCHED,
    LOSABLE,
    RESTING,
    SETTLED,
    STATE,
    Action,
    Event,
    Phase,
)
from shoal.actors.controller.phase_table import EDGES, Lifecycle, step
from shoal.model.errors import FailedPrecondition
from shoal.model.states import LIVE, MAY_BECOME, TERMINAL, State

FINAL = {Phase.CLOSED, Phase.REJECTED}
PERSISTENT = {Phase.HALTING, Phase.HALTING_ALONE, Phase.SUSPENDING}


def states(phase: Phase) -> frozenset[State]:
    """The public states that a phase may show."""
    return TERMINAL if phase in ENDED else frozenset({STATE[phase]})


def reachable(start: Iterable[Phase]) -> set[Phase]:
    seen = set(start)
    while more := {edge.to for (phase, _), edge in EDGES.items() if phase in seen} - seen:
        seen |= more
    return seen


@pytest.mark.parametrize("phase", list(Phase))
def test_every_pair_is_an_edge_or_refused(phase: Phase) -> None:
    for event in Event:
        check_pair(phase, event)


def check_pair(phase: Phase, event: Event) -> None:
    edge = EDGES.get((phase, event))
    if edge is None:
        with pytest.raises(FailedPrecondition) as caught:
            step(phase, event)
        assert caught.value.state == phase
        return
    to, actions = step(phase, event)
    assert to is edge.to
    assert edge.reason
    at_once, activities = (
        [a for a in actions if a not in ACTIVITY.values()],
        [a for a in actions if a in ACTIVITY.values()],
    )
    assert actions == (*at_once, *activities), "what is done at once comes first"
    if to is phase:
        assert actions == (), "what is under way goes on"
    else:
        assert activities == [ACTIVITY[to]] if to in ACTIVITY else not activities
    for before in states(phase):
        assert all(after is before or after in MAY_BECOME[before] for after in states(to)) or phase in ENDED
    assert (Action.NOTE_END in actions) == (to in ENDED and phase not in ENDED), "it ends once"


def test_each_phase_is_reached_and_leads_to_an_end() -> None:
    assert reachable(set(Phase) - ACCEPTED) == set(Phase)
    for phase in Phase:
        assert reachable({phase}) & FINAL, f"{phase} never ends"
        assert (phase in FINAL) == (not any(start is phase for start, _ in EDGES))


def test_an_activity_is_under_way_in_every_phase_but_the_last() -> None:
    assert set(Phase) - set(ACTIVITY) == {Phase.ABORTING, Phase.STOPPED, *FINAL}


@pytest.mark.parametrize("phase", sorted(set(Phase) - ENDED - FINAL - (set(Phase) - ACCEPTED)))
def test_an_end_may_be_asked_for_in_every_phase_that_is_on_record(phase: Phase) -> None:
    assert (phase, Event.END_REQUESTED) in EDGES


@pytest.mark.parametrize(
    "phase", sorted(ACCEPTED & {p for p in Phase if STATE.get(p) in (State.RUNNING, State.STOPPING)} - PERSISTENT)
)
def test_a_lost_machine_ends_all_that_ran_there(phase: Phase) -> None:
    assert step(phase, Event.NODE_LOST)[0] is Phase.ENDED


@pytest.mark.parametrize("phase", sorted(LOSABLE))
def test_a_lost_machine_stops_what_is_persistent_and_keeps_no_slot(phase: Phase) -> None:
    assert step(phase, Event.MACHINE_LOST) == (
        Phase.HALTED,
        (Action.FORGET_SLOT, Action.NOTE_STOP, Action.WRITE_STOP),
    )


@pytest.mark.parametrize("phase", sorted(set(Phase) - ENDED - RESTING - FINAL - {Phase.STOPPED}))
def test_it_is_noted_in_memory_whenever_one_has_stopped(phase: Phase) -> None:
    for event in Event:
        if (edge := EDGES.get((phase, event))) is not None and edge.to is Phase.HALTED:
            assert edge.actions[-1] is Action.NOTE_STOP


def test_a_slot_is_given_back_before_it_ends_unless_it_is_to_be_wiped() -> None:
    """Only a slot that told of the end has a sandbox to be wiped away."""
    for (phase, event), edge in EDGES.items():
        if edge.to is Phase.ENDED and phase is not Phase.ENDED and event is not Event.ENDED:
            has_slot = phase in {Phase.ACCEPTING_PLACED, Phase.ACCEPTING_READY, Phase.PLACING, Phase.STARTING}
            gives = {Action.FREE_SLOT, Action.DISCARD_SLOT, Action.FORGET_SLOT} & set(edge.actions)
            assert gives or not has_slot


def test_the_public_states_lead_from_one_to_the_next() -> None:
    assert set(MAY_BECOME) == set(State)
    for state in State:
        assert bool(MAY_BECOME[state]) == (state in LIVE)


def test_the_sets_of_phases_follow_one_another() -> None:
    assert SETTLED < LAUNCHED < ACCEPTED
    assert not LAUNCHED & {Phase.QUEUED, Phase.STARTING, Phase.CONFIRMING, Phase.ENDED}


def test_an_illegal_step_tells_its_history() -> None:
    life = Lifecycle()
    life.apply(Event.WRITTEN, 1.0)
    life.apply(Event.SLOT_FOUND, 2.0)
    with pytest.raises(FailedPrecondition, match=r"written:queued → slot_found:placing") as caught:
        life.apply(Event.ADOPTED, 3.0)
    assert caught.value.state == "placing"
    assert life.phase is Phase.PLACING
    assert [phase for _, _, phase in life.history] == [Phase.QUEUED, Phase.PLACING]


def test_the_history_is_bounded() -> None:
    life = Lifecycle(Phase.RUNNING)
    for _ in range(100):
        for event in (Event.SLOT_LOST, Event.ADOPTED, Event.WRITTEN):
            life.apply(event, 1.0)
    assert len(life.history) == 32


@pytest.mark.anyio
async def test_who_waits_for_a_phase_is_told_of_it() -> None:
    life = Lifecycle()
    waiting = [asyncio.create_task(life.reached({Phase.STARTING, Phase.PLACING})) for _ in range(2)]
    await asyncio.sleep(0)
    life.apply(Event.WRITTEN, 1.0)
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    life.apply(Event.SLOT_FOUND, 1.0)
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting, life.reached({Phase.PLACING}))
