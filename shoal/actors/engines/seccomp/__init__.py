"""The system calls that code in a sandbox may make: Shoal's own seccomp profile, or an operator's in its place."""

from __future__ import annotations

import os
import re
from pathlib import Path

from shoal.actors.engines.seccomp.profile import build, to_json
from shoal.actors.engines.seccomp.replacement import read_replacement

__all__ = ["profile_json"]


def profile_json(replacement: Path | None = None) -> str:
    """The profile of this machine's containers: Shoal's own, or the one in the file `replacement`.

    `InvalidRequest` (field `node.seccomp_profile`) for a file that is none.
    """
    if replacement is not None:
        return to_json(read_replacement(replacement))
    system = os.uname()
    major, minor, *_ = *map(int, re.findall(r"\d+", system.release)), 0, 0
    return to_json(build(system.machine, (major, minor)))
