"""Takes the output of living sandboxes' commands as it comes. It slows no command down, and counts as nobody's use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

from shoal.actors.node.shipping.lines import STREAMS, Splitter
from shoal.actors.node.shipping.shipper import Shipper
from shoal.model import tasks
from shoal.model.errors import ShoalError
from shoal.model.ids import MAIN_PROCESS
from shoal.wire.agent import Agent
from shoal.wire.flows import OutputStream

QUIET_S = 1.0
"""Seconds without more after which a line that has not ended is taken as it is."""

_AGAIN_S = 1.0

Connect = Callable[[str], Awaitable[Agent]]
Lines = list[tuple[int, bytes]]


@dataclass(slots=True)
class Follower:
    """`connect`: to the agent of a sandbox; `NotFound` where it is gone."""

    shipper: Shipper
    connect: Connect
    _following: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def follow(self, sandbox_id: str) -> None:
        """Takes both streams of its command to their ends. Idempotent."""
        if sandbox_id not in self._following:
            task = tasks.supervise(lambda: self._sandbox(sandbox_id), "follow output")
            self._following[sandbox_id] = task

    async def end(self, sandbox_id: str) -> None:
        """Lets go of a sandbox, whose last output is told otherwise."""
        task = self._following.pop(sandbox_id, None)
        if task is not None:
            await tasks.stop(task)

    async def keep(self, living: Collection[str]) -> None:
        """Lets go of all but these."""
        for sandbox_id in self._following.keys() - set(living):
            await self.end(sandbox_id)

    async def close(self) -> None:
        """Lets go of all; what was taken is kept."""
        following = [*self._following.values()]
        self._following.clear()
        await tasks.stop(*following)

    async def _sandbox(self, sandbox_id: str) -> None:
        again = True
        while again:
            again = await self._connection(sandbox_id)
            await asyncio.sleep(_AGAIN_S if again else 0)

    async def _connection(self, sandbox_id: str) -> bool:
        """Follows over one connection; whether to try again, as it broke. A sandbox that is gone, or its command, is no
        reason: its slot has told the rest."""
        try:
            agent = await self.connect(sandbox_id)
        except (ShoalError, OSError) as error:
            return _may_pass(error)
        again = False
        try:
            async with asyncio.TaskGroup() as group:
                for fd in STREAMS:
                    group.create_task(self._stream(agent, sandbox_id, fd))
        except* (ShoalError, OSError) as broken:
            again = any(_may_pass(error) for error in broken.exceptions)
        finally:
            agent.connection.close()
        return again

    async def _stream(self, agent: Agent, sandbox_id: str, fd: int) -> None:
        splitter = await self.shipper.splitter(sandbox_id, fd)
        async with agent.output(MAIN_PROCESS, fd, splitter.offset, tell=True, peek=True) as stream:
            if stream.offset > splitter.offset:
                gap = (splitter.offset, stream.offset)
                splitter.skip_to(stream.offset)
                await self._keep(sandbox_id, fd, splitter, [], gap)
            seen = len(stream.gaps)
            while True:
                chunk = await _next(stream, QUIET_S if splitter.has_rest else None)
                lost: tuple[int, int] | None = None
                if len(stream.gaps) > seen:  # right before this chunk
                    seen = len(stream.gaps)
                    await self._keep(sandbox_id, fd, splitter, splitter.flush(), None)
                    lost = (splitter.offset, stream.offset - len(chunk or b""))
                    splitter.skip_to(lost[1])
                lines = splitter.add(chunk) if chunk else splitter.flush()
                await self._keep(sandbox_id, fd, splitter, lines, lost)
                if chunk is None:
                    return

    async def _keep(
        self, sandbox_id: str, fd: int, splitter: Splitter, lines: Lines, gap: tuple[int, int] | None
    ) -> None:
        if lines or gap is not None:
            await self.shipper.take(sandbox_id, fd, splitter.offset, lines, gap)


async def _next(stream: OutputStream, quiet_s: float | None) -> bytes | None:
    """The next chunk; empty after `quiet_s` without one, None at the end."""
    try:
        async with asyncio.timeout(quiet_s):
            return await anext(stream)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        return b""


def _may_pass(error: Exception) -> bool:
    return error.retryable if isinstance(error, ShoalError) else True
