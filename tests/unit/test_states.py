"""The life of a sandbox: what is legal, what is not, and what an illegal step says."""

from __future__ import annotations

import pytest

from shoal.model.errors import FailedPrecondition
from shoal.model.states import LIVE, TERMINAL, TRANSITIONS, Event, Lifecycle, State, next_state


def test_every_live_state_leads_to_an_end() -> None:
    reachable = {state: {to for (frm, _), (to, _) in TRANSITIONS.items() if frm is state} for state in State}
    for state in LIVE:
        seen, pending = set(), [state]
        while pending:
            for to in reachable[pending.pop()]:
                if to not in seen:
                    seen.add(to)
                    pending.append(to)
        assert seen & TERMINAL, f"{state} never ends"


def test_the_dead_stay_dead() -> None:
    for state in TERMINAL:
        for event in Event:
            with pytest.raises(FailedPrecondition, match="it has ended"):
                next_state(state, event)


def test_each_edge_says_why() -> None:
    assert all(reason for _, reason in TRANSITIONS.values())


def test_an_illegal_step_tells_its_history() -> None:
    life = Lifecycle()
    life.apply(Event.PLACE, 1.0)
    life.apply(Event.READY, 2.0)
    with pytest.raises(FailedPrecondition, match=r"place:starting → ready:running") as caught:
        life.apply(Event.READY, 3.0)
    assert caught.value.state == "running"
    assert life.state is State.RUNNING
    assert [state for _, _, state in life.history] == [State.STARTING, State.RUNNING]
