"""The versions of a volume: directories beside what its sandboxes see, which share its data.

<point>/d                what sandboxes see
<point>/versions/<id>    a version
<point>/versions/.<id>   what is on its way in or out

JuiceFS clones a tree within its database, and shows the copy once it is whole. Going back exchanges two names, which is
atomic. No path here is one that code in a sandbox chose.

All functions block; `Unavailable`, and what is left then, the next call removes.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from shoal.actors.engines.mount_namespaces import exchange
from shoal.actors.node.mounts.juicefs import run_juicefs
from shoal.actors.volumes import VersionChange
from shoal.model.errors import PathNotFound, QuotaExceeded, Unavailable
from shoal.model.volumes import VERSION_S

_DIRECTORY = "versions"
_TOLD = 300


def change_versions(juicefs: str, point: Path, inside: str, change: VersionChange) -> None:
    """Does what `change` says to the volume that is mounted at `point`, where `inside` is what sandboxes see."""
    versions = point / _DIRECTORY
    versions.mkdir(mode=0o700, exist_ok=True)
    _tidy(juicefs, versions, change.keep)
    if change.do == "make":
        _clone(juicefs, point / inside, versions / change.version)
    elif change.do == "revert":
        if not (versions / change.version).is_dir():
            raise PathNotFound(f"version {change.version} is not there any more")
        on_its_way = versions / f".{change.version}"
        _clone(juicefs, versions / change.version, on_its_way)
        exchange(point / inside, on_its_way)
        _remove(juicefs, on_its_way)


def _tidy(juicefs: str, versions: Path, keep: Collection[str]) -> None:
    for name in os.listdir(versions):
        if name not in keep:
            _remove(juicefs, versions / name)


def _clone(juicefs: str, source: Path, target: Path) -> None:
    _run(juicefs, "clone", "--preserve", str(source), str(target))


def _remove(juicefs: str, path: Path) -> None:
    _run(juicefs, "rmr", "--skip-trash", str(path))


def _run(juicefs: str, *arguments: str) -> None:
    done = run_juicefs(juicefs, *arguments, timeout_s=VERSION_S)
    if done.returncode == 0:
        return
    if any(what in done.stderr for what in ("disk quota exceeded", "no space left")):
        raise QuotaExceeded(
            "the volume's limits leave no room for a version, which counts as much as the files in it; raise them",
            field="size",
        )
    raise Unavailable(f"juicefs {arguments[0]} failed: {done.stderr.strip()[-_TOLD:]}")
