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


class Rollback:
    """Work that ends what given-up creates have made."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, work: Coroutine[Any, Any, None], *, whole: bool = False) -> None:
        """Does `work`, which ends what was made: given `UNDO_S`, and then to its end without being waited for. `whole`: it is waited for to
        its end, or where whoever waits gives up, for `UNDO_S` more."""
        task = asyncio.get_running_loop().create_task(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.wait([task], timeout=None if whole else UNDO_S)
        except asyncio.CancelledError:
            if whole:
                await asyncio.wait([task], timeout=UNDO_S)
            raise

    async def settle(self) -> None:
        """Waits until all is undone in the running loop, for `UNDO_S` at most."""
        loop = asyncio.get_running_loop()
        tasks = [task for task in [*self._tasks] if task.get_loop() is loop]
        if tasks:
            await asyncio.wait(tasks, timeout=UNDO_S)


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except ShoalError:
        pass  # the cluster is away, or refuses now as it did before: the sandbox's own timeout will end what there is


def with_key(spec: SandboxSpec) -> SandboxSpec:
    """With an idempotency key: a call that is sent twice makes one sandbox, and what it makes is found again to be undone."""
    return spec if spec.idempotency_key is not None else replace(spec, idempotency_key=secrets.token_hex(16))
