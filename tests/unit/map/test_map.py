"""`shoal.map`: what it yields, and where it is used."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import closing, suppress
from typing import Any

import pytest

import shoal
from shoal.client.rollouts import bar
from tests.unit.map.lab import Lab, awaited, calls_awaited, others, plain

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


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


def test_the_wait_of_a_sandbox_made_ahead_does_not_count(lab: Lab) -> None:
    outcomes = shoal.map(lambda sandbox, item: time.sleep(0.4), range(3), concurrency=1, ahead=1, client=lab.client)
    assert max(each.seconds for each in outcomes) < 0.75


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
