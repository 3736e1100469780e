"""The files of `shoal up` in the state directory, beside those of the engine, Ray and the actors.

lock         held by the `up` or `down` that is at work
cluster-id   the id of this directory's clusters, one after the other
cache/       archives of the base image
ray/         Ray's sessions: the logs of the last few stay
"""

from __future__ import annotations

import fcntl
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from shoal.cluster.local import ray as local_ray
from shoal.model import cluster_file
from shoal.model.cluster_file import ClusterFile
from shoal.model.errors import FailedPrecondition, InvalidRequest, Unavailable
from shoal.model.report import Report
from shoal.model.settings import Settings

_LOCK_S = 900.0
ID_FILE = "cluster-id"
_KEPT_SESSIONS = 3
_KEPT_BY_PURGE = ("settings.toml", "lock")


@contextmanager
def lock(state: Path, report: Report) -> Iterator[None]:
    """Allows one `up` or `down` at a time per state directory; a second one waits."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        file = (state / "lock").open("w")
    except OSError as error:
        raise FailedPrecondition(
            f"state_dir: {state} cannot be written ({error.strerror}); run as root, or set SHOAL_STATE_DIR"
        ) from None
    with file:
        if not _try_lock(file.fileno()):
            with report("Waiting for another `shoal up` or `shoal down` to finish"):
                deadline = time.monotonic() + _LOCK_S
                while not _try_lock(file.fileno()):
                    if time.monotonic() > deadline:
                        raise Unavailable(f"another `shoal up` or `shoal down` has held {state}/lock for {_LOCK_S:g} s")
                    time.sleep(0.1)
        yield


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def identity(state: Path) -> str:
    """The id of all clusters of this state directory, by which the leftovers of a crash are found."""
    file = state / ID_FILE
    try:
        return file.read_text("ascii").strip()
    except FileNotFoundError:
        identity = secrets.token_hex(4)
        cluster_file.write_private(file, identity.encode())
        return identity


def settings_of(cluster: ClusterFile) -> Settings:
    """The settings that the cluster was started with; `FailedPrecondition` if this version of Shoal rejects them."""
    try:
        return Settings.from_dict(cluster.settings)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise FailedPrecondition(
            f"the cluster was started by another version of Shoal, with settings unknown to this one "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}); run `shoal down`, then `shoal up`",
            state="other_version",
        ) from None


def temp_dir(settings: Settings) -> Path:
    """Ray's session directory, if any path was short enough for one."""
    try:
        return local_ray.choose_temp_dir(settings.state_dir, settings.run_dir)
    except InvalidRequest:
        return settings.state_dir / local_ray.CLOSED / "s"


def forget_sessions(directory: Path) -> None:
    """Removes the sockets of stopped heads, and all but the newest logs."""
    sessions = sorted(path for path in directory.glob("session_*") if not path.is_symlink())
    for session in sessions[:-_KEPT_SESSIONS]:
        shutil.rmtree(session, ignore_errors=True)
    for session in sessions[-_KEPT_SESSIONS:]:
        for path in session.iterdir():
            if path.name != "logs":
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def purge(settings: Settings) -> None:
    """Removes all but the operator's `settings.toml` and the lock that we hold."""
    shutil.rmtree(temp_dir(settings).parent, ignore_errors=True)
    for path in settings.state_dir.iterdir():
        if path.name not in _KEPT_BY_PURGE:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
