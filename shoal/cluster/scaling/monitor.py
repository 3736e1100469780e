"""Ray's monitor, the process in which its autoscaler runs. Ray starts one with the head and never again, so Shoal has
the head start none (`--no-monitor`) and starts it itself, with the same program and arguments.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from shoal.cluster.local import processes
from shoal.model.cluster_file import ProcessRef

log = logging.getLogger("shoal.scaling")

_PROGRAM = "ray.autoscaler.v2.monitor"
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_WELL_S = 60.0
"""One that ran for so long ends for another reason than the one before."""


class Monitor:
    """The monitor that reads `config`, started anew when it has ended, or when what it was started with is no more."""

    def __init__(self, config: Path, gcs_address: str, logs: Path) -> None:
        self._config = config
        self._arguments = [
            sys.executable,
            "-u",
            "-m",
            _PROGRAM,
            f"--gcs-address={gcs_address}",
            f"--logs-dir={logs}",
            f"--autoscaling-config={config}",
            "--logging-rotate-bytes=10000000",
            "--logging-rotate-backup-count=2",
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._started_with: object = None
        self._started_at = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._next_at = 0.0
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """None where it does not run."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def keep(self, environment: Mapping[str, str], started_with: object) -> None:
        """Starts it where it does not run, or was started with something else. Called every second."""
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            log.error("Ray's monitor ended with %s", self._process.returncode)
            self._pause_s = (
                _FIRST_PAUSE_S if now - self._started_at > _WELL_S else min(self._pause_s * 2, _LONGEST_PAUSE_S)
            )
            self._next_at = now + self._pause_s
            self._process = None
        elif self._process is not None and started_with != self._started_with:
            log.info("Ray's monitor is started anew: the cluster's description has changed")
            self.stop()
        if self._process is None and now >= self._next_at:
            self.stop()  # one that an earlier scaler has left
            self._process = subprocess.Popen(
                self._arguments,
                env={**processes.environment(), **environment},
                cwd="/",
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._started_with, self._started_at = started_with, now
            self.starts += 1

    def stop(self) -> None:
        """Ends every monitor of this configuration."""
        processes.stop(self._found(), grace_s=1.0)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _found(self) -> list[ProcessRef]:
        mine = f"--autoscaling-config={self._config}"
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        lines = ((pid, processes.command_line(pid)) for pid in pids)
        found = [processes.ref(pid) for pid, line in lines if _PROGRAM in line and mine in line]
        return [each for each in found if each is not None]
