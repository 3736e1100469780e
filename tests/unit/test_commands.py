"""Programs that start others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoal.model.commands import run_whole

STARTS_ANOTHER = "sleep 1000 & echo $! >child; wait"


def ended(pid: int) -> bool:
    """Whether a process ends within ten seconds. One that nobody has waited for yet has ended."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(200):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_output_and_status() -> None:
    done = run_whole(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=20)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)


def test_what_takes_too_long_ends_with_what_it_started(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_whole(["sh", "-c", STARTS_ANOTHER], timeout_s=1, cwd=tmp_path)
    assert ended(int((tmp_path / "child").read_text()))


def test_a_terminated_program_leaves_nothing(tmp_path: Path) -> None:
    """As the command line handles SIGTERM: by an exception in the main thread."""
    program = (
        "import signal, sys\n"
        "from shoal.model.commands import run_whole\n"
        "def stop(*_): raise SystemExit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"run_whole(['sh', '-c', {STARTS_ANOTHER!r}], timeout_s=60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path) as process:
        child = tmp_path / "child"
        while not (child.exists() and child.read_text().strip()):
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 143
    assert ended(int(child.read_text()))
