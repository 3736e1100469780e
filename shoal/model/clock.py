"""The time in unix seconds, by a clock that nobody sets.

The machine's clock may be set while something waits, by a time server say: what is counted by it then ends at once, or
not for hours. What happened when, and what must be compared over restarts or machines, is told by `time.time()`.
"""

from __future__ import annotations

import time

_OFFSET = time.time() - time.monotonic()


def steady_time() -> float:
    """Unix seconds as the machine's clock told them when this process began, and what has passed since."""
    return _OFFSET + time.monotonic()
