"""Ends what cancelled creates have made: their caller never gets it, so it must not stay."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from shoal.model.errors import ShoalError
from shoal.model.spec import SandboxSpec

UNDO_S = 8.0
"""How long a cancelled caller, or one that closes the transport, waits for that."""


class Rollback:
    """Work that ends what given-up creates have made."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, work: Coroutine[Any, Any, None], *, whole: bool = False) -> None:
        """Runs `work`, which ends what was made, and waits `UNDO_S` for it; after that it goes on in the background.

        `whole`: waits until it is done, or `UNDO_S` longer if the caller is cancelled meanwhile.
        """
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
        """Waits for the running loop's work, for `UNDO_S` at most."""
        loop = asyncio.get_running_loop()
        tasks = [task for task in [*self._tasks] if task.get_loop() is loop]
        if tasks:
            await asyncio.wait(tasks, timeout=UNDO_S)


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except ShoalError:
        pass  # the cluster does not answer, or refuses: the sandbox's own timeout will end it


def with_key(spec: SandboxSpec) -> SandboxSpec:
    """`spec` with an idempotency key: sent twice it makes one sandbox, and a rollback finds that by the key."""
    return spec if spec.idempotency_key is not None else replace(spec, idempotency_key=secrets.token_hex(16))
