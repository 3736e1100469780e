"""Where runtimes keep what they know of the containers that run, in `<root>/runtime`: a file system in memory, as none
of it outlives their processes. On the machine's disk each start would make five files, and wait until one is written.
Blocks.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Final

from shoal.actors.engines.disks import mounts
from shoal.actors.engines.gvisor import RUNTIME as RUNSC

_log = logging.getLogger(__name__)

_NAME: Final = "runtime"
_SIZE_MIB: Final = 256
"""An upper bound: 40 KiB for each container."""


def open_state(root: Path) -> Path:
    """The directory, which is made. Where there is something in it, from before, it stays as it is until that has
    gone."""
    state = root / _NAME
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not state.is_mount() and not any(state.iterdir()):
        try:
            mounts.in_memory(state, f"mode=0700,size={_SIZE_MIB}m")
        except OSError as error:
            _log.warning("runtimes keep their state on the machine's disk: %s", error)
    return state


def close_state(root: Path) -> None:
    """Takes it away, unless something runs there. Idempotent; `OSError`."""
    state = root / _NAME
    with suppress(OSError):  # there is none, or something of a container
        (state / RUNSC).rmdir()
    if state.is_mount() and not any(state.iterdir()):
        mounts.detach(state)
