"""The rollout: one candidate, one sandbox, one reward.

This is the part to read: the rest only feeds it and shows what came out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import shoal
from examples.rollouts.mutate import Candidate
from examples.rollouts.package import Package
from shoal import Result, Sandbox, SandboxEnded

SUITE_TIMEOUT = 60.0  # seconds; an endless loop earns nothing
PACKAGES = "/packages"
WORKDIR = "/work"


@dataclass(frozen=True, slots=True)
class Trial:
    """What a candidate earned. Times in seconds.

    `exec`: the run of the suite; `inside`: that part of it which the suite itself took, as measured in the sandbox.
    """

    reward: int
    verdict: str
    exec: float
    inside: float | None


Outcome = shoal.Outcome[Candidate, Trial]


async def evaluate(sandbox: Sandbox, candidate: Candidate, package: Package) -> Trial:
    """Runs the package's own tests on the patched module."""
    await sandbox.run.aio("cp", "--recursive", f"{PACKAGES}/{package.name}", WORKDIR, check=True)
    await sandbox.files.write_text.aio(f"{WORKDIR}/{package.module}", candidate.source)
    start = time.perf_counter()
    try:
        result = await sandbox.run.aio(package.tests, workdir=WORKDIR, timeout=SUITE_TIMEOUT)
    except SandboxEnded as end:  # the patch used more memory or disk than allowed
        if end.retryable:
            raise  # its machine was lost: `shoal.map` tries again on another
        return Trial(0, end.reason.replace("_", " "), time.perf_counter() - start, None)
    return Trial(*judge(result), time.perf_counter() - start, result.duration)


def roll_out(
    candidates: Sequence[Candidate], package: Package, *, parallel: int, tags: dict[str, str]
) -> Iterator[Outcome]:
    """Evaluates all candidates, `parallel` of them at a time, each in a sandbox that lives only for this."""
    function = partial(evaluate, package=package)
    volumes = {PACKAGES: package.volume.read_only()}
    return shoal.map(
        function, candidates, concurrency=parallel, memory=(128, 512), network="none", volumes=volumes, tags=tags
    )


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
