"""`python -m examples.training --steps 15`: needs a cluster (`shoal up`).

Exit code 0 if the policy has learned something.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import shoal
from examples.arguments import positive
from examples.training.curve import Step, draw, line_of
from examples.training.judge import SANDBOX, judge
from examples.training.policy import Policy

INTERRUPTED = 130  # a shell's exit code after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    try:
        with shoal.connect():
            steps = train(arguments.steps, arguments.batch, arguments.parallel, arguments.seed)
    except KeyboardInterrupt:
        print("Interrupted; the sandboxes are gone.")
        return INTERRUPTED
    except shoal.ShoalError as error:
        print(error, file=sys.stderr)
        return 1
    rollouts, seconds = sum(len(step.scores) for step in steps), sum(step.seconds for step in steps)
    print(f"{rollouts} rollouts in {seconds:.1f} s, {rollouts / seconds:.1f} a second")
    _draw(steps, arguments.png)
    return 0 if steps[-1].mean > steps[0].mean or len(steps) == 1 else 1


def train(steps: int, batch: int, parallel: int, seed: int) -> list[Step]:
    """Trains a policy, and prints each step."""
    policy, done = Policy(seed), []
    tags = {"job": f"training-{secrets.token_hex(4)}"}
    for number in range(1, steps + 1):
        programs = policy.sample(batch)
        start = time.perf_counter()
        outcomes = shoal.map(judge, programs, ordered=True, concurrency=parallel, spec=SANDBOX, tags=tags)
        scores = tuple(outcome.unwrap() for outcome in outcomes)
        policy.learn(programs, scores)
        done.append(Step(scores, time.perf_counter() - start))
        print(line_of(number, done[-1]), flush=True)
    return done


def _draw(steps: Sequence[Step], path: Path) -> None:
    try:
        draw(steps, path)
    except ImportError:
        print("The curve is not drawn: pip install matplotlib (the extra `examples`).")
    else:
        print(f"The curve is in {path}.")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.training", description="Teach a policy to write programs that sort, in sandboxes."
    )
    parser.add_argument("--steps", type=positive, metavar="N", default=15, help="how often it learns (%(default)s)")
    parser.add_argument("--batch", type=positive, metavar="N", default=32, help="programs in each step (%(default)s)")
    parser.add_argument(
        "--parallel",
        type=positive,
        metavar="N",
        default=8 * (os.cpu_count() or 1),
        help="sandboxes at a time (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, another policy (%(default)s)")
    parser.add_argument(
        "--png",
        type=Path,
        default=Path("build/training.png"),
        metavar="FILE",
        help="where the curve goes (%(default)s)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
