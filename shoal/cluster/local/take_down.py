"""Steps of taking a cluster or a node away that `shoal down` and `shoal leave` share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shoal.cluster.local import state as local_state
from shoal.model.errors import ShoalError


def remove_directories(temp_dir: Path, run_dir: Path) -> None:
    """Removes what is empty by now, and all of Ray's sessions but the newest logs."""
    local_state.forget_sessions(temp_dir)
    for directory in (temp_dir, temp_dir.parent, run_dir):
        try:
            directory.rmdir()
        except OSError:
            pass  # not there, or somebody else's things are in it


def raise_first(errors: Iterable[ShoalError]) -> None:
    for error in errors:
        raise error
