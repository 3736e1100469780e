"""Draining: whatever fails or hangs, the rest is taken away, and the result says what is left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shoal.actors.controller import parts as parts_module
from shoal.actors.controller.nodes import NodeFailure
from shoal.actors.controller.recovery import Recovery
from shoal.model.access import INSIDE
from shoal.model.errors import FailedPrecondition, Unavailable
from tests.unit.builders import spec
from tests.unit.controller_world import NODE, World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


async def test_a_node_that_fails_keeps_no_other_from_being_closed() -> None:
    gone = Unavailable("the engine is gone")
    world = World(nodes={"bad": 0, NODE: 0, "other": 0}, nodes_fail={"bad": gone})
    controller = await world.controller()
    await controller.begin(controller.parts.sandboxes.create(spec(), 60, True, INSIDE))
    drained = await controller.begin(controller.parts.drain())
    assert drained.sandboxes == 1
    assert drained.failed == (NodeFailure("bad", "host-bad", gone),)
    assert world.nodes == {"bad": 1, NODE: 1, "other": 1}
    with pytest.raises(FailedPrecondition):
        await controller.store.expire(0.0)
    await controller.kill()


async def test_a_sandbox_that_does_not_end_keeps_nothing_from_being_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "END_ALL_S", 0.05)
    world = World()
    answer = world.call

    async def call(handle: Any, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        if method == "end_container":
            return False  # so the slots are asked
        if method == "terminate" and args[0] == stuck.id:
            await asyncio.Event().wait()
        return await answer(handle, method, *args, timeout_s=timeout_s)

    monkeypatch.setattr(world, "call", call)
    controller = await world.controller()
    create = controller.parts.sandboxes.create
    stuck, _ = await controller.begin(create(spec(), 60, True, INSIDE))
    await controller.begin(create(spec(), 60, True, INSIDE))
    drained = await controller.begin(controller.parts.drain())
    assert (drained.sandboxes, drained.failed) == (1, ())
    assert world.nodes == {NODE: 1}
    await controller.kill()


async def test_the_store_is_closed_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    controller = await World().controller()

    def defect(_: Recovery) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(Recovery, "close", defect)
    with pytest.raises(KeyError):
        await controller.begin(controller.parts.drain())
    with pytest.raises(FailedPrecondition):
        await controller.store.expire(0.0)
    await controller.kill()
