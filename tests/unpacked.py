"""Servers out of the distribution's packages, unpacked and not installed: installing one would start it."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from shoal.cluster.local import packages
from tests.cluster import test_cache


def program(package: str, path: str) -> Path:
    """The program at `path` of a package; fetched once for all sessions. Libraries that it needs must be there."""
    directory = test_cache() / package
    found = directory / path
    if not found.exists():
        with tempfile.TemporaryDirectory(dir=test_cache()) as place:
            here = Path(place, "apt")
            here.mkdir()
            if _run("apt-get", "download", package, at=here).returncode != 0:
                assert packages.can_install(), f"the package lists are not there: as root, apt-get update ({package})"
                _check(_run("apt-get", "update", "-q", at=here))
                _check(_run("apt-get", "download", package, at=here))
            (archive,) = here.glob("*.deb")
            _check(_run("dpkg-deb", "-x", str(archive), str(Path(place, "root")), at=here))
            try:
                Path(place, "root").rename(directory)
            except OSError:
                assert found.exists(), f"{directory} is there, but not {found}"  # another session was first
    return found


def _run(*command: str, at: Path) -> subprocess.CompletedProcess[str]:
    # apt's own user could not write there, and warns of it.
    options = ("-o", "APT::Sandbox::User=root") if command[0] == "apt-get" else ()
    return subprocess.run(
        [command[0], *options, *command[1:]],
        cwd=at,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _check(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, f"{done.args}: {done.stderr[-2000:]}"
