"""Creates that are given up while they are under way: nobody will ever hold what they make, so it must not stay."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from shoal.model.errors import ShoalError
from shoal.model.spec import SandboxSpec

UNDO_S = 8.0
"""How long a caller who gives up, or closes the transport, waits for that."""


class Undoing:
    """What a transport is undoing."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def undo(self, work: Coroutine[Any, Any, None]) -> None:
        """Does `work`, which ends what was made: given `UNDO_S`, and then to its end without being waited for."""
        task = asyncio.get_running_loop().create_task(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait([task], timeout=UNDO_S)

    async def settle(self) -> None:
        """Waits until all is undone, for `UNDO_S` at most."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=UNDO_S)


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except ShoalError:
        pass  # the cluster is away, or refuses now as it did before: the sandbox's own timeout will end what there is


def with_key(spec: SandboxSpec) -> SandboxSpec:
    """With an idempotency key: a call that is sent twice makes one sandbox, and what it makes is found again to be undone."""
    return spec if spec.idempotency_key is not None else replace(spec, idempotency_key=secrets.token_hex(16))
