"""The output of a sandbox that has ended: a node that does not answer is no end of it."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.model.access import INSIDE
from shoal.model.errors import DeadlineExceeded, ShoalError, Unavailable
from shoal.model.info import LogChunk
from tests.unit.builders import spec
from tests.unit.controller_world import NODE, World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


@pytest.mark.parametrize(
    "failure", [DeadlineExceeded("read_log took longer than 10 s"), Unavailable("it is being restarted"), None]
)
async def test_a_node_that_does_not_answer_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, failure: ShoalError | None
) -> None:
    world = World()
    answer, failures = world.call, [] if failure is None else [failure]

    async def call(handle: Any, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        if method != "read_log":
            return await answer(handle, method, *args, timeout_s=timeout_s)
        assert timeout_s is not None
        if failures:
            raise failures.pop()
        return args[2], b"the output", True

    monkeypatch.setattr(world, "call", call)
    controller = await world.controller()
    monkeypatch.setattr(type(controller.parts.nodes), "alive", lambda self, node_id: False)  # it missed one look
    sandboxes = controller.parts.sandboxes
    info, _ = await controller.begin(sandboxes.create(spec(), 60, True, INSIDE))
    await controller.begin(sandboxes.terminate(info.id, INSIDE))
    if failure is not None:
        with pytest.raises(Unavailable) as caught:
            await sandboxes.logs(info.id, 1, 7, INSIDE)
        assert caught.value.retryable
    assert await sandboxes.logs(info.id, 1, 7, INSIDE) == LogChunk(7, b"the output", True)
    del controller.parts.nodes._nodes[NODE]  # lost, and its output with it
    assert await sandboxes.logs(info.id, 1, 7, INSIDE) == LogChunk(7, b"", True)
    await controller.kill()
