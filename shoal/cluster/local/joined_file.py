"""`joined.json`: what `shoal join` did on this machine, so that it can be repaired and undone.

Written before anything is started: whatever becomes of a join, `shoal leave` finds what to take away.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from shoal.model.cluster_file import JOINED_FILE, ProcessRef, write_private
from shoal.model.errors import FailedPrecondition

VERSION = 1


@dataclass(frozen=True, slots=True)
class JoinedFile:
    """A machine that has joined a cluster.

    `cluster`: the cluster's id; `name`: this machine's own, by which its containers, processes and Ray node are found;
    `head`: `host:port` of Ray's head; `address`: this machine's in the cluster. `settings`: this machine's; `options`:
    how it was joined, for the next time (`JoinOptions`, those of the node).
    """

    cluster: str
    name: str
    head: str
    address: str
    auth_token_path: str
    engine_address: str
    run_dir: str
    temp_dir: str
    joined_at: float
    engine: ProcessRef | None = None
    ray: tuple[ProcessRef, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION


def path_in(state_dir: Path) -> Path:
    return state_dir / JOINED_FILE


def read(state_dir: Path) -> JoinedFile | None:
    """What was joined from this state directory; None if nothing was, `FailedPrecondition` if the file is malformed."""
    path = path_in(state_dir)
    try:
        data = json.loads(path.read_text("utf-8"))
        if data["version"] != VERSION:
            raise ValueError(f"it is of version {data['version']}")
        known = {each.name for each in fields(JoinedFile)}
        values = {name: value for name, value in data.items() if name in known}
        values["engine"] = None if values["engine"] is None else ProcessRef(**values["engine"])
        values["ray"] = tuple(ProcessRef(**ref) for ref in values["ray"])
        return JoinedFile(**values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FailedPrecondition(
            f"{path} cannot be read ({error!r}); run `shoal leave` with the version of Shoal that has joined"
        ) from None


def write(state_dir: Path, joined: JoinedFile) -> None:
    """Writes the file atomically."""
    write_private(path_in(state_dir), json.dumps(asdict(joined), indent=2).encode() + b"\n")


def remove(state_dir: Path) -> None:
    path_in(state_dir).unlink(missing_ok=True)
