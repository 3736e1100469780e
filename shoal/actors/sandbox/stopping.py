"""Ends a sandbox's command: SIGTERM, then SIGKILL, then saves its last output on the node."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import Any

from shoal.actors.sandbox.node_calls import call_node
from shoal.model.errors import ShoalError
from shoal.model.ids import MAIN_PROCESS
from shoal.wire.agent import Agent

# Both take milliseconds, but a machine may stall for seconds, and a hostile agent may never answer.
_KILL_WAIT_S = 5.0
_OUTPUT_WAIT_S = 5.0
_OUTPUT_KEEP = 1024 * 1024


async def end_command(agent: Agent, grace_s: float) -> int | None:
    """Sends SIGTERM to the command's group, and SIGKILL to its whole tree after `grace_s`. Returns its exit code, None
    if unknown."""
    for number, tree, patience in ((signal.SIGTERM, False, grace_s), (signal.SIGKILL, True, _KILL_WAIT_S)):
        await agent.signal(MAIN_PROCESS, number, tree=tree)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                return (await agent.wait(MAIN_PROCESS)).exit
    return None


async def save_output(agent: Agent, node: Any, sandbox_id: str) -> None:
    """Saves the command's last output on the node, to be read after the end. Best effort, for a few seconds."""
    for fd in (1, 2):
        with suppress(TimeoutError, ShoalError):
            async with asyncio.timeout(_OUTPUT_WAIT_S):
                offset, data = await _last_output(agent, fd)
            await call_node(node, "save_log", sandbox_id, fd, offset, data)


async def _last_output(agent: Agent, fd: int) -> tuple[int, bytes]:
    """(offset of the first byte, bytes) of what the agent still holds of one stream, at most `_OUTPUT_KEEP`."""
    stream = agent.output(MAIN_PROCESS, fd, 0)
    kept = bytearray()
    try:
        async for chunk in stream:
            kept += chunk
            del kept[:-_OUTPUT_KEEP]
    finally:
        await stream.aclose()
    return stream.offset - len(kept), bytes(kept)
