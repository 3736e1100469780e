"""What is done in a process of its own, which keeps the real clock. It imports nothing of Shoal's before."""

from __future__ import annotations

import asyncio
import logging
import sys


def figures_of_load(short: bool) -> dict[str, float]:
    """The figures of `load.py`; `short`: with a tenth of it."""
    from shoal.actors.garbage import collect_rarely
    from tests.simulation.load import LIVE, NODES, SECONDS, Load

    collect_rarely()
    logging.disable(logging.WARNING)
    part = 10 if short else 1
    return asyncio.run(Load(LIVE // part, NODES // part, seconds=SECONDS / part).run(say))


def say(text: str) -> None:
    print(f"  {text} …", file=sys.stderr, flush=True)
