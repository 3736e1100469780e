"""A caller's stdout is the caller's: Ray's messages to drivers do not get into it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.engine

SCRIPT = """
import time
import shoal
with shoal.connect():
    from ray._private import worker
    from ray._private.utils import publish_error_to_driver
    publish_error_to_driver("test", "RAY SPEAKS", gcs_client=worker.global_worker.gcs_client)
    time.sleep(2)
    print("mine")
"""


def test_ray_does_not_speak_on_a_callers_stdout(cluster: object) -> None:
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=90, check=True)
    assert (said.stdout, said.stderr) == ("mine\n", "")
