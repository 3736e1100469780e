"""The rollout: one candidate, one sandbox, one reward.

This is the part to read: the rest only feeds it and shows what came out.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from examples.rollouts.mutate import Candidate
from examples.rollouts.package import Package
from shoal import Result, Sandbox, SandboxEnded

SUITE_TIMEOUT = 60.0  # seconds; an endless loop earns nothing
LIFETIME = 2 * SUITE_TIMEOUT
WORKDIR = "/work"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one candidate. Times in seconds.

    `create`: until the sandbox was ready. `exec`: the run of the suite; `inside`: that part of it which the suite
    itself took, as measured in the sandbox. `seconds`: everything, from the create to the sandbox's end.
    """

    candidate: Candidate
    reward: int
    verdict: str
    create: float
    exec: float
    inside: float | None
    seconds: float


async def evaluate(candidate: Candidate, package: Package, tags: dict[str, str]) -> Outcome:
    """Runs the package's own tests on the patched module, in a sandbox that lives only for this."""
    start = time.perf_counter()
    async with await Sandbox.create.aio(memory=(128, 512), network="none", timeout=LIFETIME, tags=tags) as sandbox:
        created = time.perf_counter()
        await sandbox.files.upload.aio(package.root, WORKDIR)
        await sandbox.files.write_text.aio(f"{WORKDIR}/{package.module}", candidate.source)
        ready = time.perf_counter()
        try:
            result = await sandbox.run.aio(package.tests, workdir=WORKDIR, timeout=SUITE_TIMEOUT)
            reward, verdict = judge(result)
            inside = result.duration
        except SandboxEnded as end:  # the patch used more memory, disk or time than allowed
            reward, verdict = 0, end.reason.replace("_", " ")
            inside = None
        done = time.perf_counter()
    seconds = time.perf_counter() - start
    return Outcome(candidate, reward, verdict, created - start, done - ready, inside, seconds)


async def roll_out(
    candidates: list[Candidate],
    package: Package,
    *,
    parallel: int,
    tags: dict[str, str],
    on_outcome: Callable[[Outcome], None],
) -> list[Outcome]:
    """Evaluates all candidates, `parallel` of them at a time.

    The first error ends the others, and their sandboxes with them.
    """
    room = asyncio.Semaphore(parallel)

    async def rollout(candidate: Candidate) -> Outcome:
        async with room:
            outcome = await evaluate(candidate, package, tags)
        on_outcome(outcome)
        return outcome

    try:
        async with asyncio.TaskGroup() as group:
            rollouts = [group.create_task(rollout(candidate)) for candidate in candidates]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [rollout.result() for rollout in rollouts]


def judge(result: Result[str]) -> tuple[int, str]:
    """Reward and verdict, from the output of `python -m unittest`."""
    if result.timed_out:
        return 0, "timed out"
    if result.returncode < 0:
        return 0, f"killed by signal {-result.returncode}"
    ran = re.search(r"^Ran (\d+) tests? in", result.stderr, re.MULTILINE)
    if ran is None or int(ran[1]) == 0:
        return 0, "no test ran"
    if result.returncode == 0:
        return 1, f"{ran[1]} passed"
    failed = sum(int(number) for number in re.findall(r"\b(?:failures|errors)=(\d+)", result.stderr[ran.end() :]))
    return 0, f"{failed} of {ran[1]} failed"
