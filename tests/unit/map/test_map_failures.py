"""`shoal.map`: what it repeats, refuses and raises."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import shoal
from shoal.client.rollouts import supply
from shoal.model.info import Listing
from tests.unit.map.lab import Lab, awaited

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


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
        *(("reset", ["tmp"]), ("reset", ["/"]), ("timeout", 0), ("deadline", -1), ("name", ""), ("command", ["true"])),
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


def test_what_cannot_be_called_is_refused_before_a_sandbox_is_made(lab: Lab) -> None:
    with pytest.raises(shoal.InvalidRequest) as caught:
        shoal.map(7, [1], client=lab.client)  # type: ignore[call-overload]
    assert caught.value.field == "function"


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
