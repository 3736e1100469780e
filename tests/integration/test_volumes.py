"""Volumes in a real cluster: what git, pip and editors need; seen by others; healed; nothing stays mounted."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from shoal import Client, Sandbox, Volume
from shoal.cluster.local import processes
from shoal.cluster.objects.server import ObjectServer
from shoal.model.errors import (
    FailedPrecondition,
    InvalidRequest,
    PathNotFound,
    SandboxNotFound,
    Unavailable,
    VolumeNotFound,
)
from tests.cluster import Cluster
from tests.processes import command_line

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

DATA = "/data"


def until(true: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it never came to be: {what}"
        time.sleep(0.1)


def helpers(volume: Volume) -> list[int]:
    """The processes that serve a volume on this machine, its watchdog first."""
    found = subprocess.run(
        ["pgrep", "-f", f"juicefs .*mount .*/{volume.id}[.]d/"], stdout=subprocess.PIPE, text=True, check=False
    )
    return [int(pid) for pid in found.stdout.split()]


def mounted(volume: Volume) -> bool:
    return f"JuiceFS:{volume.id}" in Path("/proc/self/mountinfo").read_text()


@contextmanager
def made_volume(name: str) -> Iterator[Volume]:
    """A volume of which nothing is left afterwards."""
    made = Volume.create(name)
    yield made
    made.delete(now=True)
    until(lambda: not mounted(made), "it is unmounted")
    until(lambda: not helpers(made), "its helper has ended")


@pytest.fixture(scope="module")
def volume(cluster: Cluster) -> Iterator[Volume]:
    with made_volume("module") as made:
        yield made


@pytest.fixture(scope="module")
def writer(volume: Volume) -> Iterator[Sandbox]:
    with Sandbox.create(volumes={DATA: volume, "/ro": volume.read_only(), "/sub": volume.sub_path("a/b")}) as made:
        yield made


def test_files_are_as_on_a_local_disk(writer: Sandbox) -> None:
    script = """
    set -e; mkdir -p /data/t && cd /data/t
    echo one > f; ln f hard; ln -s f soft; test $(stat -c %h f) = 2; test "$(cat soft)" = one
    chmod 640 f; test $(stat -c %a f) = 640
    mkdir -p d/e; echo x > d/e/x; mv d moved; test -f moved/e/x; echo two > g; mv g f; test "$(cat f)" = two
    exec 3<>gone; rm gone; echo kept >&3; test ! -e gone
    flock lock true; touch "$(printf '%0255d' 7)"; touch "$(printf 'ä\\001☃')"
    python3 -m venv --without-pip venv && venv/bin/python -c 'print(6 * 7)'
    """
    assert writer.run(script, check=True).stdout.endswith("42\n")
    assert "Read-only file system" in writer.run("echo x > /ro/t/f").stderr
    assert writer.run("echo s > /sub/s && cat /data/a/b/s && ls -A /sub", check=True).stdout == "s\ns\n"


def test_its_helper_listens_nowhere(volume: Volume, writer: Sandbox) -> None:
    """JuiceFS serves profiles and metrics to every account of the machine, unless it is told otherwise."""
    found = [psutil.Process(pid) for pid in helpers(volume)]
    assert found
    assert not [each for one in found for each in one.net_connections("inet") if each.status == psutil.CONN_LISTEN]


def test_another_sandbox_and_the_outside_see_it(volume: Volume, writer: Sandbox, tmp_path: Path) -> None:
    writer.run("mkdir -p /data/out && echo 42 > /data/out/answer", check=True)
    volume.commit()
    with Sandbox.create(volumes={DATA: volume.read_only()}) as reader:
        assert reader.run("cat /data/out/answer").stdout == "42\n"
    assert volume.files.read_text("out/answer") == "42\n"
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "file").write_text("up")
    volume.files.put(tmp_path / "tree", "up")
    assert writer.run("cat /data/up/deep/file").stdout == "up"
    volume.files.get("up", tmp_path / "down")
    assert (tmp_path / "down" / "deep" / "file").read_text() == "up"
    volume.files.remove("up", recursive=True)
    assert [each.path for each in volume.files.list("out")] == ["/out/answer"]
    with pytest.raises(PathNotFound, match="open /no/such:"):
        volume.files.read_text("no/such")
    with pytest.raises(InvalidRequest):
        volume.files.read_text("../etc/passwd")
    assert volume.usage().files > 1
    assert all("volume" not in each.tags for each in Sandbox.list())


def test_a_volume_is_copied_and_goes_back_to_a_version(volume: Volume) -> None:
    with Volume.ephemeral() as made:
        made.files.write_text("a/f", "one")
        made.snapshot("one")
        made.files.write_text("a/f", "two")
        made.files.copy("a", "b")
        made.files.copy("b", "copied", volume=volume)
        assert volume.files.read_text("copied/f") == made.files.read_text("b/f") == "two"
        with Sandbox.create(volumes={DATA: made}) as sandbox:
            with pytest.raises(FailedPrecondition):
                made.revert("one")
            assert sandbox.run("ls /data/../versions").returncode != 0
        made.revert("one")
        assert [each.name for each in made.files.list()] == ["a"]
        assert made.files.read_text("a/f") == "one"


def test_what_cannot_be_mounted(volume: Volume, writer: Sandbox) -> None:
    writer.run("ln -sfn /etc /data/absolute; ln -sfn ../../.. /data/up", check=True)
    for name in ("absolute", "up", "absolute/ssl"):
        with pytest.raises(InvalidRequest):
            Sandbox.create(volumes={DATA: volume.sub_path(name)})
    with pytest.raises(VolumeNotFound):
        Sandbox.create(volumes={DATA: "no-such-volume"})
    assert writer.run("ls -A /data/../data | grep -c '^[.]\\(config\\|accesslog\\|stats\\)'").stdout == "0\n"


def test_a_mount_that_dies_heals_in_sandboxes_that_run(volume: Volume, writer: Sandbox) -> None:
    writer.run("echo here > /data/here; echo s > /sub/s", check=True)
    for pids in (helpers(volume)[-1:], helpers(volume)):
        for pid in pids:
            with suppress(ProcessLookupError):  # one ends with the other
                os.kill(pid, signal.SIGKILL)
        until(lambda: writer.run("cat /data/here /sub/s").stdout == "here\ns\n", "it is there again")
    until(lambda: not Path(f"/tmp/fuse_fd_comm.{pids[0]}").exists(), "what the one killed left is gone")
    until(lambda: writer.run("cat /data/here").stdout == "here\n", "another serves it")
    assert "Read-only file system" in writer.run("echo x > /ro/x").stderr


def test_a_deleted_volume_is_kept_while_it_is_mounted(cluster: Cluster) -> None:
    made = Volume.create("short", size=1 << 30, files=20)
    with Sandbox.create(volumes={DATA: made}) as sandbox:
        assert sandbox.run("cd /data && for i in $(seq 40); do touch f$i || exit 7; done").returncode == 7
        made.delete(now=True)
        assert sandbox.run("echo still > /data/f1 && cat /data/f1").stdout == "still\n"
        with pytest.raises(VolumeNotFound):
            Sandbox.create(volumes={DATA: made})
    until(lambda: made.id not in {each.id for each in Volume.list(deleted=True)}, "it is removed")
    assert not mounted(made)
    assert not (cluster.machine.state_dir / "volumes" / f"{made.id}.sqlite").exists()


def test_a_storage_that_comes_back_is_found(volume: Volume, writer: Sandbox, cluster: Cluster) -> None:
    writer.run("echo kept > /data/kept", check=True)
    server = ObjectServer(cluster.machine.state_dir)
    for end in (server.stop, lambda: os.kill(_running(server), signal.SIGKILL)):
        volume.commit()
        end()
        began = time.monotonic()
        volume.commit()
        assert time.monotonic() - began < 15
        assert writer.run("echo more >> /data/kept && tail -1 /data/kept").stdout == "more\n"


@pytest.mark.long
def test_without_object_storage_a_commit_says_so_and_nothing_is_lost(
    volume: Volume, writer: Sandbox, cluster: Cluster
) -> None:
    writer.run("echo kept > /data/kept", check=True)
    volume.commit()
    over, server = threading.Event(), ObjectServer(cluster.machine.state_dir)

    def hold() -> None:
        """Whichever is started in its place hangs, too."""
        while not over.wait(0.02):
            if (found := server.running()) is not None:
                os.kill(found.pid, signal.SIGSTOP)

    holding = threading.Thread(target=hold)
    holding.start()
    try:
        with pytest.raises(Unavailable):
            volume.commit()
        assert writer.run("echo still here").stdout == "still here\n"
    finally:
        over.set()
        holding.join()
    until(lambda: commits(volume), "it is committed")
    assert writer.run("cat /data/kept").stdout == "kept\n"


def _running(server: ObjectServer) -> int:
    found = server.running()
    assert found is not None
    return found.pid


def commits(volume: Volume) -> bool:
    """Whether it can be committed now."""
    try:
        volume.commit()
    except Unavailable:
        return False
    return True


@pytest.mark.long
def test_a_million_entries_are_listed_page_by_page(cluster: Cluster, http_client: Client) -> None:
    """They are put straight into JuiceFS's tables. Only the first page takes long, and the API holds no more of one
    listing than a page."""
    count, first = 1_000_000, 10_000_000
    with Volume.ephemeral(client=http_client) as made:
        made.files.write_text("many/a", "")
        with closing(
            sqlite3.connect(cluster.machine.state_dir / "volumes" / f"{made.id}.sqlite", timeout=60)
        ) as tables:
            ((top,),) = tables.execute("SELECT inode FROM jfs_edge WHERE name = ?", (b"many",))
            nodes = (
                "INSERT INTO jfs_node(inode, type, flags, mode, uid, gid, atime, mtime, ctime, nlink, length, parent)"
            )
            tables.executemany(
                f"{nodes} VALUES (?, 1, 0, 420, 0, 0, 1, 1, 1, 1, 0, {top})", ((first + each,) for each in range(count))
            )
            tables.executemany(
                f"INSERT INTO jfs_edge(parent, name, inode, type) VALUES ({top}, ?, ?, 1)",
                ((b"f%07d" % each, first + each) for each in range(count)),
            )
            tables.commit()
        taken, names, before = [], [""], api_memory(cluster)
        for limit in (1000, 1000, 1000, 10_000, 50_000):
            began = time.monotonic()
            names += [each.name for each in made.files.list("many", after=names[-1], limit=limit)]
            taken.append(time.monotonic() - began)
        print("pages", [f"{each:.1f}" for each in taken], before, api_memory(cluster))
        assert names == ["", "a", *(f"f{each:07d}" for each in range(62_999))]
        assert max(taken[1:3]) < taken[0] / 4
        assert api_memory(cluster) - before < 150 << 20  # of JSON; none of it stays
        assert [each.name for each in made.files.list("many", after=f"f{count - 2:07d}", limit=9)] == [
            f"f{count - 1:07d}"
        ]


def api_memory(cluster: Cluster) -> int:
    """Bytes of the API's replica that has most."""
    found = processes.of_cluster(cluster.file.cluster, Path(cluster.file.temp_dir))
    replicas = [psutil.Process(each.pid) for each in found if "ServeReplica" in command_line(each.pid)]
    return max(each.memory_info().rss for each in replicas)


def test_an_ephemeral_volume_goes_with_its_block() -> None:
    with Volume.ephemeral() as made:
        assert made.id in {each.id for each in Volume.list()}
    assert made.id not in {each.id for each in Volume.list()}
    with pytest.raises((VolumeNotFound, SandboxNotFound)):
        made.files.list()
