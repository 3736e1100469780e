"""The end of a sandbox's command: asked to stop, made to stop, its last output saved on the node."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import Any

from shoal.actors.handles import call
from shoal.model.errors import ShoalError
from shoal.model.ids import MAIN_PROCESS
from shoal.wire.agent import Agent

# Both take milliseconds; a machine may stand still for seconds, and an agent is in its sandbox's hands and may say nothing.
_KILL_WAIT_S = 5.0
_OUTPUT_WAIT_S = 5.0
_OUTPUT_KEEP = 1024 * 1024


async def end_command(agent: Agent, grace_s: float) -> int | None:
    """SIGTERM to the command's group, SIGKILL to its whole tree after `grace_s`; its exit, None if even that could not be learnt."""
    for number, tree, patience in ((signal.SIGTERM, False, grace_s), (signal.SIGKILL, True, _KILL_WAIT_S)):
        await agent.signal(MAIN_PROCESS, number, tree=tree)
        with suppress(TimeoutError):
            return (await asyncio.wait_for(agent.wait(MAIN_PROCESS), patience)).exit
    return None


async def save_output(agent: Agent, node: Any, sandbox_id: str) -> None:
    """Keeps on the node what the command wrote last, for those who read it after the end. Does what it can in a few seconds."""
    for fd in (1, 2):
        with suppress(TimeoutError, ShoalError):
            offset, data = await asyncio.wait_for(_last_output(agent, fd), _OUTPUT_WAIT_S)
            await call(node, "save_log", sandbox_id, fd, offset, data)


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
