"""The helper of a volume stands still: only calls into the volume notice, and none of them waits for ever."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from shoal import Sandbox, Volume
from shoal.actors.node.mounts.volumes import COMMIT_S
from shoal.client import config_file
from shoal.model.errors import Unavailable
from tests.cluster import Cluster
from tests.integration.test_volumes import DATA, helpers, mounted, until

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(400)]

_SOON_S = 10.0
"""How long a call may take that has nothing to do with a mount that stands still; the machine may be busy."""


@pytest.fixture
def volume(cluster: Cluster) -> Iterator[Volume]:
    made = Volume.create("helpers")
    yield made
    made.delete(now=True)
    until(lambda: not mounted(made), "it is unmounted")
    until(lambda: not helpers(made), "its helper has ended")


@contextmanager
def _standing_still(volume: Volume) -> Iterator[None]:
    stopped = helpers(volume)
    assert stopped
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _told_still(cluster: Cluster) -> tuple[int, list[str]]:
    """How many mounts do not answer: by the node, and by the metrics."""
    (node,) = cluster.client.nodes()
    token = config_file.read().servers[cluster.file.api_url].token
    ask = urllib.request.Request(f"{cluster.file.api_url}/metrics", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(ask, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return node.mounts_still, [line.split()[1] for line in lines if line.startswith("shoal_node_mounts_still{")]


def test_a_mount_that_stands_still_hangs_only_calls_into_it(volume: Volume, cluster: Cluster) -> None:
    with (
        Volume.ephemeral() as another,
        Sandbox.create(volumes={DATA: another}) as other,
        Sandbox.create(volumes={DATA: volume}) as holder,
        Sandbox.create(volumes={DATA: volume}) as leaver,
    ):
        holder.run("echo kept > /data/kept", check=True)
        leaver.exec("sh", "-c", "exec 3>/data/open; echo half >&3; sleep 600")
        until(lambda: holder.run("cat /data/open").stdout == "half\n", "the other has a file open")
        serving = helpers(volume)
        with _standing_still(volume):
            reading = holder.exec("cat", "/data/kept")
            for sandbox, command in ((holder, "cd /tmp"), (other, "cd /data")):
                began = time.monotonic()
                assert sandbox.run(f"{command} && echo new > f && cat f").stdout == "new\n"
                assert time.monotonic() - began < _SOON_S
            until(lambda: _told_still(cluster) == (1, ["1.0"]), "the node and the metrics tell it", 20)
            began = time.monotonic()
            leaver.terminate()
            left_s = time.monotonic() - began
            began = time.monotonic()
            with pytest.raises(Unavailable):
                volume.commit()
            refused_s = time.monotonic() - began
            assert reading.poll() is None
            print(f"terminate {left_s:.2f} s, commit refused after {refused_s:.1f} s")
            assert left_s < _SOON_S
            assert refused_s < COMMIT_S + _SOON_S
        assert reading.stdout.read() == "kept\n"
        until(lambda: _told_still(cluster) == (0, ["0.0"]), "it answers again", 20)
        volume.commit()
        assert holder.run("cat /data/kept && echo more > /data/more").stdout == "kept\n"
        assert helpers(volume) == serving
