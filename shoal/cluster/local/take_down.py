"""Steps of taking a cluster or a node away that `shoal down` and `shoal leave` share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shoal.cluster.local import engine as local_engine
from shoal.cluster.local import state as local_state
from shoal.cluster.local import sweep as local_sweep
from shoal.cluster.local.engine import LocalEngine
from shoal.model.errors import ShoalError


def reach_engine(address: str, own: bool, state: Path, run_dir: Path) -> LocalEngine | None:
    """The engine that holds the containers. `own`: it was Shoal's.

    One of our own that died is started again: only it can remove them properly.
    """
    if address and address != local_engine.own_address(run_dir):
        return LocalEngine(address) if local_engine.answers(address) else None
    if own or local_engine.leftover(run_dir) is not None:
        try:
            return local_engine.start(state, run_dir)
        except ShoalError:
            return None
    return None


def stop_engine(engine: LocalEngine | None, state: Path, run_dir: Path, *, keep: bool = True) -> None:
    """Ends an engine of Shoal's own, with all that it holds but (`keep`) persistent sandboxes; another's stays."""
    if engine is None or engine.process is None:
        return
    local_sweep.containers(engine.address, None, keep=keep)
    local_engine.stop(engine.process)
    local_sweep.mounts(run_dir)
    local_sweep.mounts(state / "engine")
    local_engine.forget(run_dir)


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
