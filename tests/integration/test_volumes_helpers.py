"""The helper of a volume stands still, or is killed while a sandbox writes: only calls into the volume notice, none of
them waits for ever, and what was closed is whole."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from shoal import Sandbox, Volume
from shoal.actors.node.mounts.manager import STILL_S
from shoal.actors.node.mounts.mounted import CALL_S
from shoal.actors.node.mounts.volumes import COMMIT_S
from shoal.client import config_file
from shoal.model.errors import Unavailable
from tests.cluster import Cluster
from tests.integration.test_volumes import DATA, commits, helpers, made_volume, until

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(400)]

_SOON_S = 10.0
"""How long a call may take that has nothing to do with a mount that stands still; the machine may be busy."""

_WRITES_S = 24
_SIZE = 8 * 65536
_WRITER = """
import sys, time
end = time.time() + float(sys.argv[1])
number = 0
with open("/tmp/told", "w", buffering=1) as told:
    while time.time() < end:
        number += 1
        try:
            with open(f"/data/{number}", "wb", buffering=0) as file:
                for _ in range(8):
                    file.write(bytes([number % 256]) * 65536)
                    time.sleep(0.01)
        except OSError as error:
            print("failed", number, error.errno, file=told)
            time.sleep(0.2)
        else:
            print("wrote", number, file=told)
"""
_READER = f"""
import sys
def whole(number):
    return open(f"/data/{{number}}", "rb").read() == bytes([int(number) % 256]) * {_SIZE}
print("lost", [number for number in open("/tmp/wanted").read().split() if not whole(number)])
"""


@pytest.fixture
def volume(cluster: Cluster) -> Iterator[Volume]:
    with made_volume("helpers") as made:
        yield made


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


def told_still(cluster: Cluster) -> tuple[int, list[str]]:
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
            until(lambda: told_still(cluster) == (1, ["1.0"]), "the node and the metrics tell it", 20)
            assert [each.info().mounts_still for each in (holder, other)] == [(DATA,), ()]
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
        until(lambda: told_still(cluster) == (0, ["0.0"]), "it answers again", 20)
        assert holder.info().mounts_still == ()
        volume.commit()
        assert holder.run("cat /data/kept && echo more > /data/more").stdout == "kept\n"
        assert helpers(volume) == serving


def test_a_mount_that_does_not_go_on_is_started_again(volume: Volume, cluster: Cluster) -> None:
    with Sandbox.create(volumes={DATA: volume}) as holder:
        holder.run("echo kept > /data/kept", check=True)
        with _standing_still(volume):
            began = time.monotonic()
            reading = holder.exec("cat", "/data/kept")
            assert reading.wait() != 0
            assert time.monotonic() - began < STILL_S + CALL_S
            until(lambda: holder.run("cat /data/kept").stdout == "kept\n", "it is there again")
            until(lambda: told_still(cluster) == (0, ["0.0"]), "the node and the metrics tell it", 20)


@pytest.mark.parametrize("killed", ["worker", "both"])
def test_a_helper_is_killed_while_a_sandbox_writes(volume: Volume, killed: str) -> None:
    """`worker`: JuiceFS's own watchdog stays, and starts another."""
    with Sandbox.create(volumes={DATA: volume}) as writer:
        began = time.monotonic()
        process = writer.exec("python3", "-c", _WRITER, str(_WRITES_S))
        committed: set[str] = set()
        for _ in range(3):
            least = len(_told(writer, "wrote")) + 4
            until(lambda least=least: len(_told(writer, "wrote")) >= least, "it writes")  # type: ignore[misc]
            closed = set(_told(writer, "wrote"))
            volume.commit()
            committed |= closed
            for pid in helpers(volume)[-1:] if killed == "worker" else helpers(volume):
                with suppress(ProcessLookupError):  # one ends with the other
                    os.kill(pid, signal.SIGKILL)
        assert process.wait() == 0
        assert time.monotonic() - began < _WRITES_S + COMMIT_S
        wrote, failed = _told(writer, "wrote"), _told(writer, "failed")
        print(killed, len(committed), len(wrote), len(failed))
        assert committed <= set(wrote)
        assert failed or killed == "worker"
        until(lambda: commits(volume), "it is committed")
        with Sandbox.create(volumes={DATA: volume.read_only()}) as reader:
            reader.files.write_text("/tmp/wanted", " ".join(wrote))
            assert reader.run("python3", "-c", _READER).stdout == "lost []\n"
        assert writer.run("echo new > /data/new && cat /data/new").stdout == "new\n"


def _told(sandbox: Sandbox, what: str) -> list[str]:
    """The numbers of the files that a writer says it wrote, or failed to."""
    lines = sandbox.run("cat /tmp/told").stdout.splitlines()
    return [line.split()[1] for line in lines if line.startswith(what)]
