"""A node on which starts fail again and again takes no new sandboxes; what callers do wrong is not held against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest

from shoal.actors.controller.node_health import LIMIT, NodeHealth
from shoal.actors.controller.nodes import Node
from shoal.model.access import INSIDE
from shoal.model.errors import ImageNotFound, Internal, InvalidRequest, ShoalError, Unavailable
from tests.unit.builders import spec
from tests.unit.controller_world import NODE, World, until

BROKEN = Internal("the engine failed")


@dataclass
class Case:
    about: str
    error: ShoalError = BROKEN
    image: str | None = "good"
    sandboxes: int = LIMIT
    started_between: bool = False
    suspect: bool = False


@pytest.mark.parametrize(
    "case",
    [
        Case("five in a row", suspect=True),
        Case("five that do not answer", Unavailable("no answer"), suspect=True),
        Case("five slots that did not come so far", image=None, suspect=True),
        Case("four", sandboxes=LIMIT - 1),
        Case("with a success between them", started_between=True),
        Case("an image that starts nowhere", image="bad"),
        Case("an image that is nowhere", ImageNotFound("none")),
        Case("a request that is wrong", InvalidRequest("memory: too low", field="memory")),
    ],
    ids=lambda case: case.about,
)
def test_what_makes_a_node_suspect(case: Case) -> None:
    health = NodeHealth()
    health.started("other", "good")
    for number in range(case.sandboxes):
        health.failed("node", f"sb-{number}", case.image, case.error)
        health.failed("node", f"sb-{number}", case.image, case.error)  # the same again counts once
        if case.started_between and number == 2:
            health.started("node", "good")
    assert bool(health.suspects) is case.suspect


@pytest.mark.anyio
@pytest.mark.parametrize("others", [True, False])
async def test_it_is_cordoned_unless_it_is_the_only_one(others: bool) -> None:
    world = World(room=20, settings={"pools": {"ready": 0}})
    controller = await world.controller()
    parts = controller.parts
    if others:
        parts.nodes._nodes["other"] = Node("other", cast("Any", "other"), {}, {}, "host-other")
    await parts.sandboxes.create(spec(), 5.0, True, INSIDE)
    for slot in world.slots.values():
        slot.fails = None
    world.new_slots_fail = BROKEN
    for _ in range(LIMIT):
        with pytest.raises(Internal):
            await parts.sandboxes.create(spec(), 5.0, True, INSIDE)
        parts.pool.let_go(NODE)
    if others:
        await until(lambda: NODE in parts.nodes.cordoned(), "it is cordoned")
    else:
        await until(lambda: not parts.pool.stock.health.suspects, "it was looked at")
        assert not parts.nodes.cordoned()
    await controller.kill()
