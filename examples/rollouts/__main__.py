"""`python -m examples.rollouts --candidates 16`: needs a cluster (`shoal up`).

Exit code 0 if the rewards make sense.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence

from rich.console import Console

import shoal
from examples.arguments import positive
from examples.rollouts.evaluate import Outcome, roll_out
from examples.rollouts.mutate import Candidate, propose
from examples.rollouts.package import FetchError, Package, load
from examples.rollouts.report import Live, print_report

INTERRUPTED = 130  # a shell's exit code after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    console = Console()
    try:
        client = shoal.connect()
        console.print("Loading the package …")
        package = load(client)
        candidates = propose(package.source, arguments.candidates, arguments.seed)
        console.print(f"{package.name}: {len(candidates)} candidates for {package.module}", highlight=False)
        outcomes = _run(console, client, candidates, package, arguments.parallel)
    except KeyboardInterrupt:
        console.print("Interrupted; the sandboxes are gone.")
        return INTERRUPTED
    except (FetchError, ValueError, shoal.ShoalError) as error:
        console.print(str(error), style="red", highlight=False, markup=False)
        return 1
    return 0 if _sensible(outcomes) else 1


def _run(
    console: Console, client: shoal.Client, candidates: list[Candidate], package: Package, parallel: int
) -> list[Outcome]:
    tags = {"job": f"rollouts-{secrets.token_hex(4)}"}
    live = Live(console, len(candidates))
    outcomes: list[Outcome] = []
    start = time.perf_counter()
    with client, live.running():
        for outcome in roll_out(candidates, package, parallel=parallel, tags=tags):
            live.show(outcome)
            outcomes.append(outcome)
    print_report(console, outcomes, time.perf_counter() - start)
    return outcomes


def _sensible(outcomes: list[Outcome]) -> bool:
    """Checks that the tests pass on the published code: tests that fail it, or pass anything, teach nothing."""
    rewards = {outcome.index: outcome.unwrap().reward for outcome in outcomes}
    return rewards.pop(0) == 1 and 0 in rewards.values()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.rollouts", description="Judge patches of a real package in sandboxes."
    )
    parser.add_argument(
        "--candidates",
        type=positive,
        default=16,
        metavar="N",
        help="how many, the unpatched one included (%(default)s)",
    )
    parser.add_argument(
        "--parallel",
        type=positive,
        default=4 * (os.cpu_count() or 1),
        metavar="N",
        help="sandboxes at a time (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other patches (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
