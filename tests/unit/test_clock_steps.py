"""The machine's clock is set two hours ahead or back while something waits: nothing ends early or waits for hours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.actors.controller import restarts
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.engines.contract import Usage
from shoal.actors.messages import End
from shoal.actors.sandbox.lifecycle import SandboxLifecycle
from shoal.model.access import INSIDE, Quota
from shoal.model.errors import DeadlineExceeded, QuotaExceeded
from shoal.model.spec import MIB
from shoal.model.states import Reason, State
from tests.unit.builders import spec
from tests.unit.controller_world import World
from tests.unit.node_world import machine

STEP_S = 7200.0
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60), pytest.mark.parametrize("step_s", [STEP_S, -STEP_S])]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the machine's clock by so many seconds."""
    real = time.time
    return lambda by_s: monkeypatch.setattr(time, "time", lambda: real() + by_s)


async def test_a_create_has_its_deadline_and_its_minute_of_quota(step_s: float, set_clock: Any) -> None:
    world, left = World(capacity=0), []

    async def call(handle: Any, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        if method == "start":
            left.append(timeout_s)
        return await World.call(world, handle, method, *args, timeout_s=timeout_s)

    world.call = call  # type: ignore[method-assign]
    controller = await world.controller()
    parts = controller.parts
    await parts.accounts.set_quota("main", Quota(creates_per_minute=2), INSIDE)
    waits = controller.begin(parts.sandboxes.create(spec(idempotency_key="waits"), 60, True, INSIDE))
    late = controller.begin(parts.sandboxes.create(spec(idempotency_key="late"), 0.5, True, INSIDE))
    await asyncio.sleep(0)
    set_clock(step_s)
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(late, 20)
    with pytest.raises(QuotaExceeded) as refused:
        await parts.sandboxes.create(spec(idempotency_key="third"), 60, True, INSIDE)
    assert 0 < refused.value.fields["retry_after"] <= 60
    world.capacity = 1
    info, _ = await asyncio.wait_for(waits, 20)
    assert info.state is State.RUNNING
    assert 0.1 < left[0] <= 60, "seconds that its slot was given"
    await controller.kill()


async def test_a_lifetime_is_counted_from_the_start(
    step_s: float, set_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with machine(monkeypatch) as place:
        await place.node.start_container("sb-1", spec())
        life = SandboxLifecycle("sb-1", spec(timeout=0.5), place.handle, grace_s=0.0)
        await life.adopt(time.time())
        await asyncio.sleep(0.01)
        set_clock(step_s)
        await asyncio.sleep(0.1)
        assert life.end is None
        assert (await asyncio.wait_for(life.ended(), 20)).reason is Reason.TIMEOUT


def test_a_restart_waits_no_longer_than_its_pause(step_s: float) -> None:
    record = SandboxRecord("sb-1", spec(persistent=True, restart="always", timeout=None), 0.0, {})
    record.stop = End(Reason.COMPLETED, 1, "", 10_000.0, kept=True)
    assert not restarts.is_due(record, 10_000.0)
    assert restarts.is_due(record, 10_000.0 + step_s)


async def test_nobody_is_charged_for_the_step(step_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    async with machine(monkeypatch) as place:
        clock = SimpleNamespace(wall=1000.0, steady=0.0)
        usage = (await place.parts()).usage
        usage.clock, usage.steady = lambda: clock.wall, lambda: clock.steady
        usage.__post_init__()
        started = await place.node.start_container("sb-1", spec())
        for wall, steady in ((1010.0, 10.0), (1020.0 + step_s, 20.0), (1030.0 + step_s, 30.0)):
            clock.wall, clock.steady = wall, steady
            place.engine.containers[started.key].usage = Usage(steady, 64 * MIB, 1)
            await usage.turn()
        amounts = usage.meter.report().amounts["sb-1"]
        assert (round(amounts.seconds), round(amounts.cpu_seconds)) == (30, 30)
        assert [round(at) for at in usage.meter.usage("sb-1", None).series.at] == [
            1010 + step_s,
            1020 + step_s,
            1030 + step_s,
        ]
