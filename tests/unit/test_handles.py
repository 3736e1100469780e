"""Calls to actors: Ray's errors come back as Shoal's, and an actor's own as what they are."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from shoal.actors.handles import call
from shoal.model.errors import Internal, NotFound
from tests.unit.node_world import Handle

pytestmark = pytest.mark.anyio


class Failing:
    """An actor whose method raised `cause`, as Ray hands that on."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause

    async def method(self) -> None:
        raise RayTaskError("method", "its traceback", self.cause).as_instanceof_cause()


def handle(cause: Exception) -> Any:
    return Handle(Failing(cause))


@pytest.mark.parametrize("timeout_s", [None, 60.0])
async def test_an_actors_own_timeout_is_not_the_callers(timeout_s: float | None) -> None:
    with pytest.raises(Internal, match="no answer from within"):
        await call(handle(TimeoutError("no answer from within")), "method", timeout_s=timeout_s)


async def test_an_actors_error_of_the_tree_is_that_error() -> None:
    with pytest.raises(NotFound):
        await call(handle(NotFound("no such thing")), "method")


async def test_a_caller_that_is_cancelled_gets_no_answer_though_one_has_just_come() -> None:
    answer = asyncio.get_running_loop().create_future()
    actor: Any = SimpleNamespace(method=SimpleNamespace(remote=lambda: answer))
    asked = asyncio.create_task(call(actor, "method", timeout_s=60.0))
    await asyncio.sleep(0.01)
    answer.set_result("just now")
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
