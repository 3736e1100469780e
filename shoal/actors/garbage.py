"""What Python's collector looks through for garbage in cycles, and how often."""

from __future__ import annotations

import gc

_THRESHOLDS = 5_000, 5, 1_000


def spare_what_stays() -> None:
    """Call it once all is imported: no look is at that any more.

    A process that has imported Ray and the API has 140,000 objects; now and then Python looks at all there are, and
    whatever the process answers stands still meanwhile: for 240 ms on a busy machine, and half a millisecond after
    this.
    """
    gc.freeze()


def collect_rarely() -> None:
    """The same for the controller, which looks seldom, too.

    By default Python looks at 700 new objects, and soon at all there are: with 10,000 living sandboxes a look at all
    stands still for half a second, and looking took half of the processor time of 300 creates a second. Reference
    counts free nearly all: a sandbox's life leaves 4 objects in cycles (`tests/simulation/load.py`).
    """
    spare_what_stays()
    gc.set_threshold(*_THRESHOLDS)
