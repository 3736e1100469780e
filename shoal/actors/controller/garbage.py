"""How often Python's collector looks through the controller's memory for garbage in cycles."""

from __future__ import annotations

import gc

_THRESHOLDS = 5_000, 5, 1_000


def collect_rarely() -> None:
    """Call it once all is imported.

    By default Python looks at 700 new objects, and soon at all there are: with 10,000 living sandboxes a look at all
    stands still for half a second, and looking took half of the processor time of 300 creates a second. Reference
    counts free nearly all: a sandbox's life leaves 4 objects in cycles (`tests/simulation/load.py`).
    """
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
