"""What TLS between client and relay costs: `python -m tests.bench.relay_tls`. Needs no cluster and no engine.

The same measures over a relay without and one with it, in turns; printed are the medians and their ratio.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

from shoal.model.ids import new_process_id
from shoal.wire.agent import Agent, Start
from shoal.wire.connection import Connection
from tests.contract.relay_fixture import AgentLab, agent_lab

ROUNDS = 7
MIB = 1 << 20


async def main() -> None:
    async with agent_lab() as clear, agent_lab(tls=True) as secure:
        for name, unit, measure in (
            ("exec", "ms", _execs),
            ("exec, 16 callers", "ms each", _execs_of_16),
            ("open a connection", "ms", _opens),
            ("write 10 MiB", "MB/s", _writes),
            ("read 10 MiB", "MB/s", _reads),
        ):
            found: dict[AgentLab, list[float]] = {clear: [], secure: []}
            for _ in range(ROUNDS):
                for lab in found:
                    async with lab.agent() as agent:
                        found[lab].append(await measure(lab, agent))
            without, with_tls = (statistics.median(times) for times in found.values())
            print(f"{name:20} {without:8.2f} {with_tls:8.2f} {unit:8} ratio {with_tls / without:.2f}", flush=True)


async def _timed(times: int, call: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    for _ in range(times):
        await call()
    return (time.perf_counter() - began) / times * 1000


async def _execs(lab: AgentLab, agent: Agent) -> float:
    return await _timed(100, lambda: agent.run(Start(new_process_id(), ["true"])))


async def _execs_of_16(lab: AgentLab, agent: Agent) -> float:
    return (
        await _timed(10, lambda: asyncio.gather(*(agent.run(Start(new_process_id(), ["true"])) for _ in range(16))))
        / 16
    )


async def _opens(lab: AgentLab, agent: Agent) -> float:
    async def open_one() -> None:
        connection = await Connection.open(lab.relay.address, lab.token(), wait_s=5)
        connection.abort()

    return await _timed(30, open_one)


async def _writes(lab: AgentLab, agent: Agent) -> float:
    data = bytes(10 * MIB)
    return 10 * MIB / 1e3 / await _timed(5, lambda: agent.write(str(lab.directory / "f"), data))


async def _reads(lab: AgentLab, agent: Agent) -> float:
    (lab.directory / "f").write_bytes(bytes(10 * MIB))
    return 10 * MIB / 1e3 / await _timed(5, lambda: agent.read_bytes(str(lab.directory / "f")))


if __name__ == "__main__":
    asyncio.run(main())
