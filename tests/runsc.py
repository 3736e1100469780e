"""gVisor's `runsc` for tests, built once for all sessions: it takes some minutes."""

from __future__ import annotations

import os
from pathlib import Path

from shoal.cluster.local import gvisor
from tests.cluster import printing, test_cache

IN_GVISOR = os.environ.get("SHOAL_TEST_RUNTIME") == "runsc"
"""Whether the session's sandboxes run in gVisor."""


def runsc() -> Path:
    """`SHOAL_TEST_RUNSC`, or the one that was built here."""
    named = os.environ.get("SHOAL_TEST_RUNSC")
    if named:
        return Path(named)
    target = test_cache() / "gvisor" / "runsc"
    if not target.exists():
        gvisor.build(target, printing)
    return target
