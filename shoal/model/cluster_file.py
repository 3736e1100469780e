"""`cluster.json`, which `shoal up` writes into the state directory so that others on the machine find the cluster.

    <state_dir>/cluster.json     this file, 0600: addresses, processes, settings (a `store.url` may hold a password)
    <state_dir>/auth_token       Ray's token (`auth_token_path`), 0600
    <state_dir>/secret           the cluster's own secret, 32 bytes (`secret_path`), 0600

Standard library only: the client reads it before it needs anything else.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from shoal.model.errors import FailedPrecondition

VERSION = 1
JOINED_FILE = "joined.json"
"""In the state directory of a machine that has joined another one's cluster."""


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """A process that Shoal started. `started`: its start time in clock ticks, which tells a reused pid apart."""

    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """A one-machine cluster. `engine`: the process of an engine that `shoal up` started; None if it ran before.

    `temp_dir` is the directory that Ray keeps its sessions in; `started_at` in unix seconds. `api_listens` is the
    address (`host:port`) that the HTTP API listens on, `api_url` how clients reach it; empty where there is none.
    """

    cluster: str
    ray_address: str
    engine_address: str
    auth_token_path: str
    secret_path: str
    run_dir: str
    temp_dir: str
    started_at: float
    namespace: str = "shoal"
    engine: ProcessRef | None = None
    ray: tuple[ProcessRef, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    api_listens: str = ""
    api_url: str = ""
    version: int = VERSION


def ray_environment(cluster: ClusterFile) -> dict[str, str]:
    """The variables that a driver needs to reach the cluster, set before `ray` is imported."""
    return driver_environment(cluster.ray_address, cluster.auth_token_path)


def driver_environment(ray_address: str, auth_token_path: str) -> dict[str, str]:
    return {
        "RAY_ADDRESS": ray_address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": auth_token_path,
        **loopback_environment(ray_address.rpartition(":")[0]),
    }


LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
READ_ON_IMPORT = ("RAY_AUTH_MODE", LOOPBACK_VARIABLE)
"""Variables that have no effect once `ray` is imported."""


def loopback_environment(host: str) -> dict[str, str]:
    """Lets Ray bind all its ports to 127.0.0.1.

    By default Ray replaces a loopback address by the machine's own, except on platforms where it supports no clusters.
    Treated as one of these, it accepts 127.0.0.1, and no other loopback address.
    """
    return {LOOPBACK_VARIABLE: "0"} if host == "127.0.0.1" else {}


def path_in(state_dir: Path) -> Path:
    return state_dir / "cluster.json"


def read(state_dir: Path) -> ClusterFile | None:
    """The cluster of this state directory; None if none was started, `FailedPrecondition` if the file is malformed."""
    path = path_in(state_dir)
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"{path} cannot be read ({error}); run `shoal down`, then `shoal up`") from None
    try:
        return _decode(data)
    except (TypeError, ValueError, KeyError) as error:
        raise FailedPrecondition(
            f"{path} was written by another version of Shoal ({error}); run `shoal down`, then `shoal up`"
        ) from None


def write(state_dir: Path, cluster: ClusterFile) -> None:
    """Writes the file atomically."""
    write_private(path_in(state_dir), json.dumps(asdict(cluster), indent=2).encode() + b"\n")


def remove(state_dir: Path) -> None:
    path_in(state_dir).unlink(missing_ok=True)


def write_private(path: Path, data: bytes) -> None:
    """Writes `data` atomically and durably to `path`, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".shoal-")  # mkstemp makes it 0600
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _decode(data: Any) -> ClusterFile:
    if not isinstance(data, dict) or data.get("version") != VERSION:
        raise ValueError("unknown version")
    known = {f.name for f in fields(ClusterFile)}
    values = {name: value for name, value in data.items() if name in known}
    values["engine"] = None if values.get("engine") is None else ProcessRef(**values["engine"])
    values["ray"] = tuple(ProcessRef(**ref) for ref in values.get("ray", ()))
    return ClusterFile(**values)
