"""A sandbox's life in its slot, over a real node: whatever fails, it ends, and the slot takes the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from shoal.actors.engines.fake import EngineStuck
from shoal.actors.sandbox import actor as slot_module
from shoal.actors.sandbox.actor import SandboxActor
from shoal.model.errors import ImageNotFound
from shoal.model.spec import SlotShape
from shoal.model.states import Reason
from tests.unit.builders import spec
from tests.unit.node_world import Machine, machine

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

WITHIN_S = 20.0
"""How long a test waits for what is to happen: only one that fails waits so long."""


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    async with machine(monkeypatch) as made:
        yield made


@pytest.fixture
def slot(place: Machine, monkeypatch: pytest.MonkeyPatch) -> SandboxActor:
    monkeypatch.setattr(slot_module, "find_actor", lambda name: place.handle)
    return SandboxActor("slot-1", SlotShape(0.125, 128, 0, None), grace_s=0.0)


async def test_all_who_wait_for_a_start_are_told_why_it_failed(slot: SandboxActor) -> None:
    wanted = spec(image="none/such")
    told = await asyncio.gather(*(slot.start("sb-1", wanted) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in told] == [ImageNotFound] * 3
    assert (await slot.describe()).sandbox_id is None


async def test_a_start_that_failed_with_nobody_waiting_leaves_the_slot_free(place: Machine, slot: SandboxActor) -> None:
    await place.node.start_container("sb-2", spec())
    stuck = EngineStuck("image")
    place.engine.inject(stuck)
    start = asyncio.create_task(slot.start("sb-1", spec(image="none/such")))
    await asyncio.wait_for(stuck.reached.wait(), WITHIN_S)
    start.cancel()
    await asyncio.wait([start])
    beginning = slot._beginning
    assert beginning is not None
    stuck.let_go.set()
    await asyncio.wait([beginning], timeout=WITHIN_S)
    assert (await slot.adopt("sb-2", spec(), time.time())).node_id
    assert (await slot.terminate("sb-2", "on request")).reason is Reason.TERMINATED
    await slot.wipe("sb-2")
