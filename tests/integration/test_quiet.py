"""Ray in a caller's process: it neither speaks on the CLI's stdout nor handles signals that are the caller's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.cluster import Cluster

pytestmark = pytest.mark.engine

COMMAND = """
import asyncio, time
from shoal.cli.session import with_cluster
def speak(words):
    from ray._private import worker
    from ray._private.utils import publish_error_to_driver
    publish_error_to_driver("test", words, gcs_client=worker.global_worker.gcs_client)
async def body(client):
    speak("RAY SPEAKS")
    await asyncio.sleep(1)
    print("mine")
with_cluster(body)
speak("RAY STILL SPEAKS")
time.sleep(1)
"""

DRIVER = """
import signal, sys, time
import shoal
if "own" in sys.argv:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(7))
if "late" in sys.argv:
    import ray
shoal.connect()
print("up", "ray" in str(type(shoal.connect().transport)).lower(), flush=True)
time.sleep(60)
"""


def test_ray_does_not_speak_on_the_stdout_of_a_command(cluster: Cluster) -> None:
    said = subprocess.run(
        [sys.executable, "-c", COMMAND], env=over_ray(cluster), capture_output=True, text=True, timeout=90, check=True
    )
    assert (said.stdout, said.stderr) == ("mine\n", "")


@pytest.mark.parametrize(("handler", "code"), [("none", -signal.SIGTERM), ("own", 7)])
def test_sigterm_ends_a_driver_in_its_own_way(cluster: object, handler: str, code: int) -> None:
    driver = started(handler)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "up True\n"
    driver.terminate()
    _, errors = driver.communicate(timeout=30)
    assert (driver.returncode, errors) == (code, "")


def test_a_driver_that_imported_ray_too_early_is_told_and_served(cluster: object) -> None:
    driver = started("late")
    assert driver.stdout is not None
    assert driver.stdout.readline() == "up False\n"
    driver.kill()
    assert "RAY_AUTH_MODE=token" in driver.communicate(timeout=30)[1]


def test_sigterm_ends_a_command_over_ray_cleanly(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "shoal.cli.main", "run", "shoal/base", "sh", "-c", "echo up; sleep 60"]
    process = subprocess.Popen(
        command, env=over_ray(cluster), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (128 + signal.SIGTERM, "")


def over_ray(cluster: Cluster) -> dict[str, str]:
    """An environment in which a command joins Ray: of itself it takes the way over the API."""
    return {**os.environ, "RAY_ADDRESS": cluster.file.ray_address}


def started(argument: str) -> subprocess.Popen[str]:
    """The driver, in a new process that has none of Ray's variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, argument],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
