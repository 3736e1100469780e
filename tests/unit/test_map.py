"""`shoal.map`: what it yields, what it repeats, how much it holds, and that nothing is left however it ends."""

from __future__ import annotations

import asyncio
import gc
import os
import pty
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing, suppress
from typing import Any

import pytest

import shoal
from shoal.client.cluster import Client
from shoal.client.rollouts import bar, run, supply
from shoal.model.info import Listing, SandboxInfo
from shoal.model.spec import SandboxSpec
from shoal.model.states import State
from tests.fakes.cluster import FakeTransport

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


class Lab:
    """A cluster in memory, and what a map on it needs."""

    def __init__(self) -> None:
        self.fake = FakeTransport()
        self.client = Client(self.fake)

    def sandboxes(self, *, include_ended: bool = True) -> list[SandboxInfo]:
        return asyncio.run(self.fake.list(Listing(limit=10_000, include_ended=include_ended)))

    async def living(self) -> int:
        return len(await self.fake.list(Listing(limit=10_000)))


@pytest.fixture
def lab() -> Lab:
    return Lab()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_PAUSES_S", (0.001, 0.001))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = len(threads())
    yield
    deadline = time.monotonic() + 5
    while len(threads()) > before + 2:  # the client's own loop, and the fakes'
        assert time.monotonic() < deadline, threads()
        time.sleep(0.01)


def threads() -> list[threading.Thread]:
    """Without those that a loop keeps for its next blocking call."""
    return [thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]


def plain(sandbox: shoal.Sandbox, item: int) -> int:
    return int(sandbox.run("echo", str(item)).stdout) ** 2


async def awaited(sandbox: shoal.Sandbox, item: int) -> int:
    return int((await sandbox.run.aio("echo", str(item))).stdout) ** 2


def calls_awaited(sandbox: shoal.Sandbox, item: int) -> Any:
    """As a lambda or a partial does: plain, but its result is to be awaited."""
    return awaited(sandbox, item)


async def others() -> int:
    """How many tasks of maps run in this loop."""
    return sum(task.get_name().startswith("map: ") for task in asyncio.all_tasks())


# What it yields


@pytest.mark.parametrize("function", [plain, awaited, calls_awaited])
def test_each_item_has_a_sandbox_of_its_own(lab: Lab, function: Any) -> None:
    outcomes = list(shoal.map(function, range(12), concurrency=4, client=lab.client, tags={"job": "a"}))
    assert sorted((each.index, each.item, each.value) for each in outcomes) == [(n, n, n * n) for n in range(12)]
    assert all(each.ok and each.error is None and each.attempts == 1 and each.seconds > 0 for each in outcomes)
    made = lab.sandboxes()
    assert {each.sandbox_id for each in outcomes} == {each.id for each in made}
    assert len(made) == 12
    assert all(each.ended and each.tags == {"job": "a"} for each in made)
    assert {each.spec.owner_lease for each in made} == {60.0}


@pytest.mark.parametrize("function", [plain, awaited])
async def test_the_awaited_form_does_the_same(lab: Lab, function: Any) -> None:
    async def items() -> AsyncIterator[int]:
        for number in range(12):
            yield number

    values = [each.unwrap() async for each in shoal.map.aio(function, items(), ordered=True, client=lab.client)]
    assert values == [n * n for n in range(12)]
    assert await others() == 0
    assert await lab.living() == 0


async def test_outcomes_come_as_they_are_done_or_in_order(lab: Lab) -> None:
    async def slow_first(sandbox: shoal.Sandbox, item: int) -> None:
        await asyncio.sleep(0.3 if item == 0 else 0)

    options: Any = {"concurrency": 4, "client": lab.client}
    assert [each.index async for each in shoal.map.aio(slow_first, range(6), **options)][-1] == 0
    in_order = [each.index async for each in shoal.map.aio(slow_first, range(6), ordered=True, **options)]
    assert in_order == list(range(6))


def test_nothing_to_do(lab: Lab) -> None:
    assert list(shoal.map(plain, [], client=lab.client)) == []
    assert list(shoal.map(plain, iter(()), client=lab.client)) == []
    assert lab.sandboxes() == []


def test_options_may_differ_by_item(lab: Lab) -> None:
    options: Any = {"spec": lambda item: {"memory": item * 64}, "cpu": 0.5, "ordered": True}
    outcomes = list(shoal.map(awaited, [1, -1, 3], client=lab.client, **options))
    assert [each.ok for each in outcomes] == [True, False, True]
    assert isinstance(outcomes[1].error, shoal.InvalidRequest)
    assert outcomes[1].sandbox_id is None
    made = {each.id: each.spec.resources for each in lab.sandboxes()}
    sizes = [made[str(outcomes[n].sandbox_id)] for n in (0, 2)]
    assert [(each.memory_request, each.cpu_request) for each in sizes] == [(64, 0.5), (192, 0.5)]


# Failures


async def test_its_own_errors_are_not_repeated_unless_asked(lab: Lab) -> None:
    calls: list[int] = []

    async def fails(sandbox: shoal.Sandbox, item: int) -> int:
        calls.append(item)
        if len(calls) < 3:
            raise KeyError(item)
        return item

    (first,) = [each async for each in shoal.map.aio(fails, [7], client=lab.client)]
    assert (type(first.error), first.attempts, calls) == (KeyError, 1, [7])
    with pytest.raises(KeyError):
        first.unwrap()
    calls.clear()
    (second,) = [each async for each in shoal.map.aio(fails, [7], retry_on=KeyError, client=lab.client)]
    assert (second.value, second.attempts, calls) == (7, 3, [7, 7, 7])
    assert len(await lab.fake.list(Listing(include_ended=True))) == 4, "each attempt has a sandbox of its own"
    assert await lab.living() == 0


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (shoal.Unavailable("away"), 3),
        (shoal.SandboxEnded("lost", reason="node_lost"), 3),
        (shoal.SandboxEnded("too big", reason="out_of_memory"), 1),
        (shoal.CommandNotFound("no such program"), 1),
        (TimeoutError("its own"), 1),
        (StopIteration(), 1),
        (asyncio.CancelledError("its own"), 1),
    ],
    ids=repr,
)
@pytest.mark.parametrize("in_thread", [True, False])
def test_only_retryable_ends_are_repeated(lab: Lab, error: BaseException, attempts: int, in_thread: bool) -> None:
    def fail(sandbox: shoal.Sandbox, item: int) -> None:
        raise error

    async def fail_async(sandbox: shoal.Sandbox, item: int) -> None:
        raise error

    function: Any = fail if in_thread else fail_async
    (outcome,) = shoal.map(function, [0], retries=2, client=lab.client)
    assert outcome.error is error or isinstance(error, StopIteration)
    assert outcome.attempts == attempts
    assert all(each.ended for each in lab.sandboxes())


def test_a_create_that_fails_in_passing_is_repeated(lab: Lab) -> None:
    lab.fake.fail_next("create", shoal.Unavailable("away"))
    outcomes = list(shoal.map(awaited, range(3), client=lab.client))
    assert sorted(each.attempts for each in outcomes) == [1, 1, 2]
    assert all(each.ok for each in outcomes)


@pytest.mark.parametrize("options", [{"memory": -1}, {"image": ""}, {"no_such": 1}, {"spec": {"cpu": "x"}}])
def test_a_spec_that_is_wrong_for_all_is_raised_at_once(lab: Lab, options: Any) -> None:
    with pytest.raises(shoal.InvalidRequest) as caught:
        list(shoal.map(awaited, iter(range(10**9)), client=lab.client, **options))
    assert caught.value.field in (*options, *options.get("spec", ()))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("concurrency", 0), ("concurrency", 1.5), ("ahead", -1), ("buffer", -1), ("retries", -1), ("reuse", 0)),
        *(("retry_on", "KeyError"), ("retry_on", (KeyError, 1)), ("spec", "small"), ("reset", "/tmp")),
        *(("reset", ["tmp"]), ("reset", ["/"]), ("timeout", 0), ("deadline", -1), ("name", "a"), ("command", ["true"])),
        ("idempotency_key", "k"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_begins(lab: Lab, field: str, value: Any) -> None:
    with pytest.raises(shoal.InvalidRequest) as caught:
        shoal.map(awaited, [1], client=lab.client, **{field: value})
    assert caught.value.field == field


def test_reuse_with_a_spec_for_each_item_is_refused(lab: Lab) -> None:
    with pytest.raises(shoal.InvalidRequest) as caught:
        shoal.map(awaited, [1], client=lab.client, reuse=2, spec=lambda item: {})
    assert caught.value.field == "reuse"


def test_what_is_not_iterable_is_refused(lab: Lab) -> None:
    with pytest.raises(shoal.InvalidRequest) as caught:
        shoal.map(awaited, 7, client=lab.client)  # type: ignore[call-overload]
    assert caught.value.field == "items"


def test_the_error_of_a_generator_comes_after_the_items_before_it(lab: Lab) -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise OSError("the file ends here")

    seen: list[int | None] = []

    def take() -> None:
        for each in shoal.map(awaited, items(), ordered=True, client=lab.client):
            seen.append(each.value)  # noqa: PERF401  # `extend` would keep nothing

    with pytest.raises(OSError, match="ends here"):
        take()
    assert seen == [0, 1, 4]
    assert all(each.ended for each in lab.sandboxes())


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_an_exit_within_the_function_ends_the_map(lab: Lab, error: BaseException) -> None:
    async def leaves(sandbox: shoal.Sandbox, item: int) -> None:
        raise error

    with pytest.raises(type(error)):
        list(shoal.map(leaves, range(100), client=lab.client))
    assert all(each.ended for each in lab.sandboxes())
    assert next(shoal.map(awaited, [2], client=lab.client)).value == 4, "the background loop goes on"


@pytest.mark.parametrize("in_thread", [True, False])
def test_an_item_may_take_only_so_long(lab: Lab, in_thread: bool) -> None:
    def hang(sandbox: shoal.Sandbox, item: int) -> None:
        sandbox.run("sleep", "600")

    async def hang_async(sandbox: shoal.Sandbox, item: int) -> None:
        await asyncio.sleep(600)

    function: Any = hang if in_thread else hang_async
    (outcome,) = shoal.map(function, [0], timeout=0.1, client=lab.client)
    assert isinstance(outcome.error, shoal.DeadlineExceeded)
    assert outcome.attempts == 1
    assert all(each.ended for each in lab.sandboxes())


def test_a_full_quota_is_waited_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supply, "_ROOM_S", 0.05)
    lab.client.create_environment("small", sandboxes=2)
    outcomes = list(shoal.map(awaited, range(10), concurrency=4, environment="small", client=lab.client))
    assert sorted(each.unwrap() for each in outcomes) == [n * n for n in range(10)]
    lab.client.create_environment("none", sandboxes=0)
    (outcome,) = shoal.map(awaited, [1], environment="none", client=lab.client)
    assert isinstance(outcome.error, shoal.QuotaExceeded), "nobody of this map will make room"


# How much it holds


class Counting(FakeTransport):
    """Sandboxes that cost nothing: they only count. `most`: how many lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.most = 0
        self.made = 0

    async def create(self, spec: SandboxSpec, *, deadline: float, wait: bool = True) -> SandboxInfo:
        self.made += 1
        self.now += 1
        self.most = max(self.most, self.now)
        return SandboxInfo(f"sb-{self.made:016d}", State.RUNNING, spec, 0.0)

    async def terminate(self, sandbox_id: str) -> SandboxInfo:
        self.now -= 1
        return None  # type: ignore[return-value]


async def double(sandbox: shoal.Sandbox, item: int) -> int:
    return 2 * item


@pytest.mark.parametrize("ordered", [True, False])
async def test_an_endless_generator_is_taken_only_so_far_ahead(ordered: bool) -> None:
    fake, pulled, ahead, most_tasks = Counting(), 0, 0, 0

    def endless() -> Iterator[int]:
        nonlocal pulled
        while True:
            pulled += 1
            yield pulled

    outcomes = shoal.map.aio(double, endless(), concurrency=8, ahead=2, buffer=5, ordered=ordered, client=Client(fake))
    taken = 0
    async with aclosing(outcomes):
        async for outcome in outcomes:
            assert outcome.value == 2 * outcome.item
            taken += 1
            if taken % 100 == 0:  # a taker that is slow at times
                await asyncio.sleep(0.01)
            ahead, most_tasks = max(ahead, pulled - taken), max(most_tasks, await others())
            if taken == 1500:
                break
    assert ahead <= 8 + 2 + 5
    assert most_tasks <= 8 + 2 + 1 + 10, "a task for each item, the one that takes items, and the sandboxes' ends"
    assert fake.most <= 8 + 2
    assert fake.now == 0
    assert await others() == 0


async def test_a_straggler_holds_up_only_as_many_as_may_wait() -> None:
    fake, begun, go_on = Counting(), 0, asyncio.Event()

    async def first_hangs(sandbox: shoal.Sandbox, item: int) -> None:
        nonlocal begun
        begun += 1
        if item == 0:
            await go_on.wait()

    options: Any = {"concurrency": 4, "ahead": 1, "buffer": 3, "ordered": True, "client": Client(fake)}
    outcomes = shoal.map.aio(first_hangs, iter(range(1000)), **options)
    async with aclosing(outcomes):
        taking = asyncio.ensure_future(anext(outcomes))
        await asyncio.sleep(0.2)
        assert begun == 4 + 1 + 3
        go_on.set()
        assert (await taking).index == 0


async def test_sandboxes_are_made_while_items_run(lab: Lab) -> None:
    lab.fake.start_s = 0.1
    waits: list[float] = []
    last = time.monotonic()

    async def work(sandbox: shoal.Sandbox, item: int) -> None:
        nonlocal last
        waits.append(time.monotonic() - last)
        await asyncio.sleep(0.15)
        last = time.monotonic()

    async for _ in shoal.map.aio(work, range(4), concurrency=1, client=lab.client):
        pass
    assert all(wait < 0.09 for wait in waits[1:]), waits


async def test_items_at_a_time_are_bounded(lab: Lab) -> None:
    now = most = 0

    async def work(sandbox: shoal.Sandbox, item: int) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1

    async for _ in shoal.map.aio(work, range(30), concurrency=3, ahead=3, client=lab.client):
        pass
    assert most == 3


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


# Where it is used


async def test_a_notebook_may_block_its_loop(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert sorted(each.unwrap() for each in shoal.map(plain, range(3), client=lab.client)) == [0, 1, 4]


def test_many_threads_have_maps_of_their_own(lab: Lab) -> None:
    found: list[Sequence[int]] = []

    def work() -> None:
        found.append(sorted(each.unwrap() for each in shoal.map(plain, range(5), concurrency=2, client=lab.client)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[0, 1, 4, 9, 16]] * 4


def read_now(descriptor: int) -> str:
    os.set_blocking(descriptor, False)
    found = b""
    with suppress(BlockingIOError):
        while chunk := os.read(descriptor, 1 << 16):
            found += chunk
    return found.decode()


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_is_only_for_terminals(lab: Lab, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")

    async def fail_one(sandbox: shoal.Sandbox, item: int) -> None:
        if item == 2:
            raise ValueError

    ours, theirs = pty.openpty() if terminal else os.pipe()
    with closing(os.fdopen(theirs, "w")) as stderr:
        monkeypatch.setattr(bar.sys, "stderr", stderr)
        list(shoal.map(fail_one, range(5), progress=True, client=lab.client))
        stderr.flush()
        shown = read_now(ours)
    os.close(ours)
    assert ("5/5" in shown and "1 failed" in shown) == terminal
    assert terminal or shown == ""
