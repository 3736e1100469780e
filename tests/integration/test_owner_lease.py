"""Owner leases on a real cluster: a driver that is killed leaves nothing behind for long."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import shoal
from shoal.transport.http_server import normal_url
from tests.cluster import Cluster

pytestmark = pytest.mark.engine

LEASE_S = 5.0

DRIVER = f"""
import sys, time
import shoal
with shoal.connect(*sys.argv[1:]) as client:
    sandboxes = shoal.Sandbox.create_many(2, owner_lease={LEASE_S}, client=client)
    print(*(sandbox.id for sandbox in sandboxes), flush=True)
    time.sleep(600)  # it never calls again
"""


def test_its_sandboxes_live_as_long_as_a_driver_and_end_soon_after_it_was_killed(cluster: Cluster) -> None:
    addresses: list[list[str]] = [[], [normal_url(cluster.file.api_url)]]
    drivers = [
        subprocess.Popen([sys.executable, "-c", DRIVER, *address], stdout=subprocess.PIPE, text=True)
        for address in addresses
    ]
    try:
        ids = [sandbox_id for driver in drivers for sandbox_id in _line(driver).split()]
        sandboxes = [shoal.Sandbox.from_id(sandbox_id) for sandbox_id in ids]
        assert len(sandboxes) == 4
        time.sleep(1.5 * LEASE_S)
        assert {sandbox.info().state.value for sandbox in sandboxes} == {"running"}
    finally:
        for driver in drivers:
            driver.kill()
            driver.communicate()
    killed = time.monotonic()
    for sandbox in sandboxes:
        sandbox.wait(timeout=60)
        assert sandbox.info().reason == "terminated"
        assert "owner lease" in (sandbox.info().message or "")
    assert time.monotonic() - killed < LEASE_S + 20  # a look each second, and a busy machine's removals


def _line(driver: subprocess.Popen[str]) -> str:
    assert driver.stdout is not None
    return driver.stdout.readline()
