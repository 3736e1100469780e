"""Where the time of a create went: steps of the controller, with those of the slot and the node inside."""

from __future__ import annotations

import pytest

from shoal.actors.controller.phase import Event, Phase
from shoal.actors.controller.phase_table import Lifecycle
from shoal.actors.controller.profile import profile_of
from shoal.actors.controller.record import SandboxRecord, from_row, to_row
from shoal.actors.messages import SandboxStarted
from shoal.cli.profile import _execs
from shoal.client.cluster import Client
from shoal.client.sandbox import Sandbox
from shoal.model import verbs
from tests.fakes.cluster import FakeTransport
from tests.unit.builders import spec

HISTORY = [
    (100.1, Event.WRITTEN, Phase.QUEUED),
    (102.1, Event.SLOT_FOUND, Phase.PLACING),
    (102.2, Event.WRITTEN, Phase.STARTING),
    (102.7, Event.STARTED, Phase.CONFIRMING),
    (102.8, Event.WRITTEN, Phase.RUNNING),
    (900.0, Event.SLOT_LOST, Phase.ADOPTING),
]
TOOK = (("node", 0.01), ("image", 0.02), ("container", 0.3), ("agent", 0.05))


def record(history: bool = True) -> SandboxRecord:
    life = Lifecycle(Phase.RUNNING, HISTORY if history else [])
    return SandboxRecord(
        "sb-1", spec(), 100.0, {}, life, started=SandboxStarted("c", "n", "r", 102.69, warm=False, took=TOOK)
    )


def test_each_step_has_its_time() -> None:
    told = profile_of(record())
    assert [(step.name, round(step.seconds, 3)) for step in told.steps] == [
        ("record", 0.1),
        ("queue", 2.0),
        ("place", 0.1),
        ("slot", 0.12),
        *((name, seconds) for name, seconds in TOOK),
        ("confirm", 0.1),
    ]
    assert told.seconds == pytest.approx(2.7), "until the controller knew that it ran, not until it did"
    assert all(step.about for step in told.steps)


def test_after_a_restart_of_the_controller_the_steps_of_the_node_are_left() -> None:
    told = profile_of(from_row(to_row(record(history=False))))
    assert [step.name for step in told.steps] == [name for name, _ in TOOK]
    waiting = SandboxRecord("sb-2", spec(), 100.0, {}, Lifecycle(Phase.QUEUED, HISTORY[:1]))
    assert profile_of(waiting).seconds is None
    assert [step.name for step in profile_of(waiting).steps] == ["record"]


@pytest.mark.anyio
async def test_a_client_sees_the_create_and_measures_the_exec() -> None:
    client = Client(FakeTransport())
    made = await Sandbox.create.aio(client=client)
    told = await client.transport.ask(verbs.profile, made.id)
    assert "record" in {step.name for step in told.steps}
    assert [step.name for step in await _execs(made)][:3] == ["dial", "round trip", "command"]
    await client.close.aio()
