"""Long use leaves nothing behind: not in a sandbox's agent, not in the relay, not in the caller."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

import shoal
from tests.processes import agent_of, eventually, relay_pid

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]

EXECS = 50_000
CALLERS = 16


def anonymous_kib(pid: int) -> int:
    """Memory of a process's own, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def execs(sandbox: shoal.Sandbox, count: int) -> None:
    """`count` execs by 16 callers, each with some output of its own."""
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            result = await sandbox.run.aio(["echo", str(number)])
            assert result.stdout == f"{number}\n"

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


def test_fifty_thousand_execs_leave_memory_and_descriptors_flat(cluster: object) -> None:
    with shoal.Sandbox.create(timeout=600) as sandbox:
        agent, relay = agent_of(sandbox), relay_pid()
        assert relay is not None

        async def soak() -> tuple[list[int], list[int]]:
            await execs(sandbox, EXECS // 10)  # buffers and caches are as large as they will be
            before = [anonymous_kib(agent), anonymous_kib(relay), descriptors(agent), descriptors(relay)]
            await execs(sandbox, EXECS - EXECS // 10)
            return before, [anonymous_kib(agent), anonymous_kib(relay)]

        before, after = asyncio.run(soak())
        # Of what was done last something may still be being closed.
        eventually(
            lambda: descriptors(agent) <= before[2] + 2, what=f"as few of the agent's descriptors as {before[2]}"
        )
        eventually(
            lambda: descriptors(relay) <= before[3] + 8, what=f"as few of the relay's descriptors as {before[3]}"
        )
        assert after[0] < before[0] + 4096, f"the agent's memory grew from {before[0]} to {after[0]} KiB"
        assert after[1] < before[1] + 4096, f"the relay's memory grew from {before[1]} to {after[1]} KiB"
        assert sandbox.run("ls -d /proc/[0-9]* | wc -l").stdout.strip() in {"2", "3", "4", "5"}, (
            "no process is left over"
        )
