"""Putting a sandbox back into use: kills what runs in it, and empties directories."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from shoal.client.retrying_agent import RetryingAgent
from shoal.model.errors import DeadlineExceeded, PathNotFound

RESET_S = 30.0
"""Seconds that a reset may take: code inside may have left millions of files."""


async def reset(agent: RetryingAgent, directories: Sequence[str]) -> None:
    """Kills all processes of the sandbox and removes what is in `directories`, as root."""
    try:
        async with asyncio.timeout(RESET_S):
            await agent.call(lambda there: there.clear())
            for directory in directories:
                await _empty(agent, directory)
    except TimeoutError:
        raise DeadlineExceeded(f"the sandbox could not be reset within {RESET_S:g} s") from None


async def _empty(agent: RetryingAgent, directory: str) -> None:
    try:
        entries = await agent.call(lambda there: there.list(directory, user="root"))
    except PathNotFound:
        return
    for entry in entries:
        await _remove(agent, entry.path)


async def _remove(agent: RetryingAgent, path: str) -> None:
    try:
        await agent.call(lambda there: there.remove(path, recursive=True, user="root"))
    except PathNotFound:
        pass  # an earlier attempt, whose answer was lost, has removed it
