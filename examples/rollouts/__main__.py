"""`python -m examples.rollouts --candidates 16`: needs a cluster (`shoal up`).

Exit code 0 if the rewards make sense.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import shoal
from examples.rollouts.evaluate import Outcome, roll_out
from examples.rollouts.mutate import Candidate, propose
from examples.rollouts.package import FetchError, Package, fetch
from examples.rollouts.report import Live, print_report

INTERRUPTED = 130  # a shell's exit code after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    console = Console()
    try:
        client = shoal.connect()
        with tempfile.TemporaryDirectory(prefix="rollouts-") as directory:
            console.print("Fetching the package …")
            package = fetch(Path(directory))
            candidates = propose(package.source, arguments.candidates, arguments.seed)
            console.print(f"{package.name}: {len(candidates)} candidates for {package.module}", highlight=False)
            outcomes = asyncio.run(_run(console, client, candidates, package, arguments.parallel))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("Interrupted; the sandboxes are gone.")
        return INTERRUPTED
    except (FetchError, ValueError, shoal.ShoalError) as error:
        console.print(str(error), style="red", highlight=False, markup=False)
        return 1
    return 0 if _sensible(outcomes) else 1


async def _run(
    console: Console, client: shoal.Client, candidates: list[Candidate], package: Package, parallel: int
) -> list[Outcome]:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # like Ctrl-C
    tags = {"job": f"rollouts-{secrets.token_hex(4)}"}
    live = Live(console, len(candidates))
    start = time.perf_counter()
    async with client:
        with live.running():
            outcomes = await roll_out(candidates, package, parallel=parallel, tags=tags, on_outcome=live.show)
    print_report(console, outcomes, time.perf_counter() - start)
    return outcomes


def _sensible(outcomes: list[Outcome]) -> bool:
    """Checks that the tests pass on the published code: tests that fail it, or pass anything, teach nothing."""
    return outcomes[0].reward == 1 and any(outcome.reward == 0 for outcome in outcomes[1:])


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.rollouts", description="Judge patches of a real package in sandboxes."
    )
    parser.add_argument(
        "--candidates",
        type=_positive,
        default=16,
        metavar="N",
        help="how many, the unpatched one included (%(default)s)",
    )
    parser.add_argument(
        "--parallel",
        type=_positive,
        default=4 * (os.cpu_count() or 1),
        metavar="N",
        help="sandboxes at a time (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other patches (%(default)s)")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is out of range; give 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
