"""Background tasks: none fails unseen, and none is started otherwise."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.actors.controller.activity import Activity
from shoal.actors.controller.metrics import Metrics, Present
from shoal.model import tasks
from shoal.model.errors import Unavailable
from shoal.model.metrics import exposition

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]

ACTORS = Path(__file__).parents[2] / "shoal" / "actors"
AT_ONCE = (0.0, 1.0)
CREATES = {"create_task", "ensure_future", "run_coroutine_threadsafe"}


class Work:
    """Raises its errors, one each time, then returns."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.runs = 0

    async def __call__(self) -> None:
        self.runs += 1
        if self.errors:
            raise self.errors.pop(0)


@pytest.mark.parametrize("error", [KeyError("a defect"), Unavailable("away"), OSError("gone"), RuntimeError("closed")])
async def test_what_fails_is_run_again_and_counted(error: Exception) -> None:
    work, before = Work(error, error), tasks.failures["a test"]
    await tasks.supervise(work, "a test", pauses_s=AT_ONCE)
    assert work.runs == 3
    assert tasks.failures["a test"] == before + 2
    told = Metrics(Activity(0.0)).snapshot(Present())
    assert b'shoal_task_failures_total{task="a test"}' in exposition(told)


async def test_what_fails_too_often_has_its_consequence() -> None:
    last, told = KeyError("last"), list[Exception]()
    work = Work(*[KeyError("again")] * 2, last, KeyError("never raised"))
    await tasks.supervise(work, "a test", attempts=3, failed=told.append, pauses_s=AT_ONCE)
    assert told == [last]
    assert work.runs == 3


async def test_failures_far_apart_are_not_in_a_row() -> None:
    ended = list[Exception]()
    runs = 0

    async def now_and_then() -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.02)
        if runs < 6:
            raise KeyError(runs)

    await tasks.supervise(now_and_then, "a test", attempts=2, failed=ended.append, pauses_s=(0.0, 0.01))
    assert (runs, ended) == (6, [])


async def test_a_loop_goes_on_after_a_failure_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "PAUSES_S", AT_ONCE)
    work = Work(KeyError("a defect"))
    loop = tasks.repeat(0.001, work, "a test")
    while work.runs < 5:  # noqa: ASYNC110 - the loop itself tells nobody
        await asyncio.sleep(0.001)
    await tasks.stop(loop)
    assert loop.cancelled()


async def test_shared_work_tells_its_callers_and_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("a defect")

    task = tasks.shared(fail(), "a test")
    waiting = [asyncio.shield(task) for _ in range(2)]
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in told] == [KeyError, KeyError]
    assert "a defect" in caplog.text


def bare_tasks(tree: ast.AST) -> Iterator[int]:
    """The lines on which a task is created other than in a task group, which raises what its tasks raise."""
    groups = {
        item.optional_vars.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name) and ast.unparse(item.context_expr) == "asyncio.TaskGroup()"
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Attribute) and node.attr in CREATES):
            continue
        if not (isinstance(node.value, ast.Name) and node.value.id in groups):
            yield node.lineno


def test_no_actor_creates_a_bare_task() -> None:
    found = [
        f"{path.relative_to(ACTORS)}:{line}"
        for path in sorted(ACTORS.rglob("*.py"))
        for line in bare_tasks(ast.parse(path.read_text("utf-8")))
    ]
    assert found == [], "an exception in it would be lost; use `shoal.model.tasks`"


def test_a_bare_task_is_found() -> None:
    text = "async def f():\n asyncio.create_task(g())\n async with asyncio.TaskGroup() as a:\n  a.create_task(g())"
    assert [*bare_tasks(ast.parse(text))] == [2]
