"""The control group above all sandboxes of a machine. It bounds their processes and threads together, so that the
machine keeps some whatever each sandbox may have."""

from __future__ import annotations

import contextlib
import logging
import subprocess
from dataclasses import dataclass
from pathlib import Path

from shoal.actors.engines.cgroups import mount_points

_log = logging.getLogger(__name__)

NAME = "shoal"
_SLICE = f"{NAME}.slice"
_SYSTEMCTL_S = 10.0


def most_pids(kernel: Path = Path("/proc/sys/kernel")) -> int:
    """Three quarters of the processes and threads that this kernel can have at once: what all sandboxes of a machine
    may have together, if no setting says otherwise."""
    return min(int((kernel / name).read_text()) for name in ("pid_max", "threads-max")) * 3 // 4


@dataclass(frozen=True, slots=True)
class CgroupParent:
    """The group. `name`: what an engine calls it; `directory`: where it is, unless systemd keeps it."""

    name: str
    pids: int
    directory: Path | None = None

    def ensure(self) -> None:
        """Makes it if it is not there: another cluster's end removes it where it is empty. Blocks."""
        if self.directory is None:
            return
        bound = self.directory / "pids.max"
        if not bound.exists():
            self.directory.mkdir(exist_ok=True)
            bound.write_text(str(self.pids))


def prepare(driver: str, pids: int) -> CgroupParent | None:
    """The group with its bound, for an engine with that cgroup driver; None if it can't be had, so that only each
    sandbox's own bound holds. Blocks."""
    try:
        if driver == "systemd":
            _systemctl("set-property", "--runtime", _SLICE, f"TasksMax={pids}")
            return CgroupParent(_SLICE, pids)
        if driver == "cgroupfs":
            directory = _directory(Path("/proc/self/mountinfo").read_text())
            directory.mkdir(exist_ok=True)
            (directory / "pids.max").write_text(str(pids))
            return CgroupParent(f"/{NAME}", pids, directory)
        reason = f"the engine's cgroup driver is {driver or 'unknown'}"
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(error)
    _log.warning("the sandboxes' processes are not bounded together: %s", reason)
    return None


def remove(mountinfo: str | None = None) -> None:
    """Removes the group where it is empty. Idempotent. Blocks."""
    mountinfo = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    for root, point in mount_points(mountinfo).values():
        if root == "/":
            with contextlib.suppress(OSError):  # not there, or another cluster's sandboxes are in it
                (Path(point) / NAME).rmdir()
    if Path("/run/systemd/system.control", f"{_SLICE}.d").exists():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            _systemctl("revert", _SLICE)


def _directory(mountinfo: str) -> Path:
    points = mount_points(mountinfo)
    root, point = points.get("pids") or points.get("") or ("", "")
    if root != "/":
        raise OSError("the top of the control groups is not in sight")
    children = Path(point, "cgroup.subtree_control")
    if "pids" not in points and "pids" not in children.read_text().split():
        children.write_text("+pids")
    return Path(point) / NAME


def _systemctl(*arguments: str) -> None:
    done = subprocess.run(
        ["systemctl", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SYSTEMCTL_S,
        check=False,
    )
    if done.returncode != 0:
        raise OSError(f"systemctl {arguments[0]}: {done.stderr.strip()[:200]}")
