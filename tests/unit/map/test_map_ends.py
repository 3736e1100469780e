"""`shoal.map`: nothing is left however it ends, and sandboxes that serve several items."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from typing import Any

import pytest

import shoal
from shoal.client.rollouts import run
from tests.unit.map.lab import Lab, awaited, others, plain

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


# How it ends


async def test_leaving_the_loop_ends_all(lab: Lab) -> None:
    async for outcome in shoal.map.aio(awaited, iter(range(10**9)), client=lab.client):
        if outcome.index >= 5:
            break
    deadline = time.monotonic() + 10
    while await others():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert await lab.living() == 0


def test_leaving_the_blocking_loop_ends_all(lab: Lab) -> None:
    for outcome in shoal.map(plain, iter(range(10**9)), client=lab.client):
        if outcome.index >= 5:
            break
    assert lab.sandboxes(include_ended=False) == []

    def fail() -> None:
        for _ in shoal.map(plain, iter(range(10**9)), client=lab.client):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert lab.sandboxes(include_ended=False) == []
    outcomes = shoal.map(plain, iter(range(10**9)), client=lab.client)
    next(outcomes)
    outcomes.close()
    assert lab.sandboxes(include_ended=False) == []


def test_a_map_that_is_dropped_ends_all(lab: Lab) -> None:
    outcomes: Any = shoal.map(plain, iter(range(10**9)), client=lab.client)
    next(outcomes)
    cycle = [outcomes]
    cycle.append(cycle)  # type: ignore[arg-type]
    del outcomes, cycle
    gc.collect()
    assert lab.sandboxes(include_ended=False) == []


@pytest.mark.parametrize("create_s", [0.0, 0.1])
def test_a_program_that_ends_its_loop_leaves_nothing(
    lab: Lab, create_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    lab.fake.start_s = create_s

    async def main() -> None:
        async for _ in shoal.map.aio(awaited, iter(range(10**9)), client=lab.client):
            break

    asyncio.run(main())
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"], "tasks that were destroyed"
    deadline = time.monotonic() + 5
    while lab.sandboxes(include_ended=False):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("create_s", [0.0, 0.3])
async def test_cancelling_the_task_ends_all(lab: Lab, create_s: float) -> None:
    lab.fake.start_s = create_s

    async def take() -> None:
        async for _ in shoal.map.aio(awaited, iter(range(10**9)), client=lab.client):
            pass

    task = asyncio.create_task(take())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await others() == 0
    assert await lab.living() == 0


def test_an_interrupt_ends_all_and_goes_on(lab: Lab) -> None:
    def hang(sandbox: shoal.Sandbox, item: int) -> None:
        if item == 5:
            os.kill(os.getpid(), signal.SIGINT)
        sandbox.run("sleep", "600")

    with pytest.raises(KeyboardInterrupt):
        list(shoal.map(hang, range(100), client=lab.client))
    assert lab.sandboxes(include_ended=False) == []


def test_a_sandbox_that_cannot_be_ended_is_left_to_its_lease(lab: Lab) -> None:
    lab.fake.fail_next("terminate", shoal.Unavailable("away"))
    (outcome,) = shoal.map(awaited, [3], client=lab.client, owner_lease=5)
    assert outcome.value == 9
    (left,) = lab.sandboxes(include_ended=False)
    assert left.id not in lab.client.leases._held
    asyncio.run(lab.fake.terminate(left.id))


# Reuse


def test_a_sandbox_serves_several_items_with_a_reset_in_between(lab: Lab) -> None:
    def leave(sandbox: shoal.Sandbox, item: int) -> int:
        left = sandbox.files.exists("/tmp/left")
        running = sum(each.running for each in sandbox.processes())
        sandbox.files.write_text("/tmp/left", "x")
        sandbox.exec("sleep", "600")
        return int(left) + running

    outcomes = list(shoal.map(leave, range(9), concurrency=1, ahead=0, reuse=3, client=lab.client))
    assert [each.unwrap() for each in outcomes] == [0] * 9
    assert len(lab.sandboxes()) == 3
    assert len(lab.fake.named("clear")) == 6
    assert all(each.ended for each in lab.sandboxes())
    lifetimes = {each.spec.timeout for each in lab.sandboxes()}
    assert lifetimes == {2 * 3 * 300 + 60.0}


def test_a_sandbox_whose_item_failed_or_whose_reset_fails_is_not_reused(lab: Lab) -> None:
    def fail(sandbox: shoal.Sandbox, item: int) -> None:
        raise ValueError(item)

    options: Any = {"concurrency": 1, "ahead": 0, "reuse": 9, "client": lab.client}
    assert not any(each.ok for each in shoal.map(fail, range(3), **options))
    assert len(lab.sandboxes()) == 3
    lab.fake.fail_next("clear", shoal.SandboxEnded("it is gone", reason="out_of_memory"))
    assert all(each.ok for each in shoal.map(awaited, range(4), **options))
    assert len(lab.sandboxes()) == 5
    assert all(each.ended for each in lab.sandboxes())


async def test_one_that_ended_while_it_waited_is_replaced(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_STALE_S", 0.0)

    async def end_others(sandbox: shoal.Sandbox, item: int) -> str:
        # One that is still being created would fail for its item, which is another matter.
        for each in await shoal.Sandbox.list.aio(states=["running"], client=lab.client):
            if each.id != sandbox.id:
                await each.terminate.aio()
        return (await sandbox.run.aio("echo", "hello")).stdout

    outcomes = [each async for each in shoal.map.aio(end_others, range(4), concurrency=1, ahead=1, client=lab.client)]
    assert [each.value for each in outcomes] == ["hello\n"] * 4
    assert {each.attempts for each in outcomes} == {1}
    assert await lab.living() == 0
