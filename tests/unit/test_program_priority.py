"""What carries bytes goes before what computes."""

from __future__ import annotations

import os
import subprocess

import pytest

from shoal.actors.node.program import put_first


@pytest.mark.usefixtures("as_root")  # only root may
def test_a_program_that_was_started_nice_goes_first() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            os.setpriority(os.PRIO_PROCESS, process.pid, 5)
            put_first(process.pid)
            assert os.getpriority(os.PRIO_PROCESS, process.pid) == 0
        finally:
            process.kill()
