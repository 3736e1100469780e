"""The programs that a node needs, and their installation from Debian or Ubuntu packages."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable

from shoal.model.errors import FailedPrecondition
from shoal.model.programs import find
from shoal.model.report import Report

NODE_PROGRAMS = {
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "mount": "mount",
    "mkfs.ext4": "e2fsprogs",
}
"""Program → its package. For the sandboxes' networks and disks."""

ENGINE_PROGRAMS = {"dockerd": "docker.io", "containerd": "containerd", "runc": "runc", "iptables": "iptables"}

BASE_IMAGE_PROGRAMS = {"mmdebstrap": "mmdebstrap"}

_LOCK_TRIES = 150  # five minutes: another apt may run, as usual on a new machine
_TIMEOUT_S = 900.0


def missing(programs: dict[str, str]) -> list[str]:
    """The packages of the programs that are missing."""
    return sorted({package for program, package in programs.items() if find(program) is None})


def can_install() -> bool:
    return os.geteuid() == 0 and find("apt-get") is not None


def install_command(packages: Iterable[str]) -> str:
    """The command for a person to type."""
    return f"apt-get update && apt-get install -y {' '.join(packages)}"


def ensure(programs: dict[str, str], report: Report) -> None:
    """Installs what is missing, without questions; `FailedPrecondition` with the command if that is not possible."""
    packages = missing(programs)
    if not packages:
        return
    remedy = f"run, as root: {install_command(packages)}"
    if not can_install():
        raise FailedPrecondition(f"{', '.join(packages)}: missing on this machine; {remedy}")
    with report(f"Installing {', '.join(packages)}"):
        _apt(["update", "-q"], remedy)
        _apt(["install", "-q", "-y", "--no-install-recommends", *packages], remedy)
    still = missing(programs)
    if still:
        raise FailedPrecondition(f"{', '.join(still)}: installed, but the programs are not on the PATH")


def _apt(arguments: list[str], remedy: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "a", "LC_ALL": "C.UTF-8"}
    options = ["-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"]
    for attempt in range(_LOCK_TRIES):
        try:
            done = subprocess.run(
                [find("apt-get") or "apt-get", *options, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise FailedPrecondition(f"apt-get {arguments[0]} took longer than {_TIMEOUT_S:g} s; {remedy}") from None
        if done.returncode == 0:
            return
        if "lock" not in done.stderr or attempt == _LOCK_TRIES - 1:
            break
        time.sleep(2.0)
    lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))] or done.stderr.splitlines()
    raise FailedPrecondition(f"apt-get {arguments[0]} failed ({' '.join(lines[-3:])[:400]}); {remedy}")
