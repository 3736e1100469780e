"""Volumes of two machines with PostgreSQL and S3 behind them, which fail in turn: nothing that was told to be written
is lost, nothing hangs for ever, and a commit that could not finish says so."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from shoal import Sandbox, Volume
from shoal.cluster.local import processes
from shoal.cluster.objects.server import ObjectServer
from shoal.model import cluster_file
from shoal.model.errors import ShoalError, Unavailable, VolumeNotFound
from shoal.model.volumes import FRESH_S
from tests.cluster import test_cache as cache_of_tests
from tests.integration.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.integration.machines import Machine, lan, processes_of
from tests.integration.test_machines import SHOAL, Head
from tests.integration.test_volumes import commits, helpers
from tests.postgres import Postgres
from tests.processes import command_line

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(900)]

_WRITER = """
import os, sys, time
end = time.time() + float(sys.argv[2])
for number in range(1_000_000):
    if time.time() > end:
        break
    try:
        with open(f"/data/{sys.argv[1]}/{number}", "w") as file:
            file.write(str(number) * 100)
    except OSError as error:
        print("failed", number, error.errno, flush=True)
        continue
    print("wrote", number, flush=True)
    time.sleep(0.02)
"""
_READER = """
import sys
lost = [n for n in map(int, open("/tmp/written")) if open(f"/data/{sys.argv[1]}/{n}").read() != str(n) * 100]
print("lost", lost)
"""
_APPENDER = """
import fcntl, sys
with open("/data/lock", "w") as lock:
    for number in range(40):
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open("/data/lines", "a") as file:
            file.write(f"{sys.argv[1]} {number}\\n")
        fcntl.flock(lock, fcntl.LOCK_UN)
"""


@dataclass
class Site:
    """Two machines with a sandbox each that has the volume at `/data`; `storage`, `database`: what these are behind."""

    head: Head
    machine: Machine
    volume: Volume
    here: Sandbox
    there: Sandbox
    storage: FaultyProxy
    database: FaultyProxy
    postgres: Postgres
    name: str
    """The database's."""

    def written(self, name: str, meanwhile: Callable[[], None], seconds: float) -> tuple[list[int], list[str]]:
        """What a writer was told to be written there while something happened, and what not."""
        self.here.run(f"mkdir -p /data/{name}", check=True)
        process = self.here.exec("python3", "-c", _WRITER, name, str(seconds))
        time.sleep(1)
        meanwhile()
        lines = process.stdout.read().splitlines()
        process.wait()
        return (
            [int(line.split()[1]) for line in lines if line.startswith("wrote")],
            [line for line in lines if line.startswith("failed")],
        )

    def nothing_is_lost(self, name: str, written: list[int]) -> None:
        self.volume.reload()
        assert _lost(self.there, name, written) == "lost []\n"

    def fails(self, proxy: FaultyProxy, fault: Fault, seconds: float) -> Callable[[], None]:
        def body() -> None:
            proxy.fault = fault
            time.sleep(seconds)
            proxy.fault = "none"

        return body


@pytest.fixture(scope="module")
def site(clusters_engine: str, postgres: Postgres) -> Iterator[Site]:
    with ExitStack() as stack:
        net = stack.enter_context(lan("198.51.100"))  # tests of machines may run at the same time
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-v", dir="/tmp")))
        server = ObjectServer(directory / "s3")
        access = server.ensure("127.0.0.1")
        stack.callback(server.stop)
        assert access.endpoint is not None
        storage = stack.enter_context(faulty_proxy(net.address, access.endpoint.removeprefix("http://")))
        database = stack.enter_context(faulty_proxy(net.address, f"127.0.0.1:{postgres.port}"))
        url = stack.enter_context(postgres.database())
        head = Head(net, directory, clusters_engine)
        (directory / "cache").symlink_to(cache_of_tests())
        head.environ |= {
            "SHOAL_STORE__URL": url.replace(f"127.0.0.1:{postgres.port}", database.address),
            "SHOAL_OBJECTS__BUCKET": "shoal",
            "SHOAL_OBJECTS__ENDPOINT": f"http://{storage.address}",
            "SHOAL_OBJECTS__REGION": "us-east-1",
            "SHOAL_OBJECTS__CREDENTIALS": str(server.directory / "credentials"),
        }
        stack.callback(head.shoal, "down", check=False)  # by then a machine is dead
        head.shoal("up", "--address-ip", net.address, "--region", "here")
        machine = stack.enter_context(net.machine(11))
        token = head.shoal("node", "token")
        address = json.loads(head.shoal("status", "--json"))["ray_address"]
        # The disk of its caches is full at once.
        cache = Path(machine.environ["SHOAL_STATE_DIR"]) / "node" / "mounts"
        machine.run("mkdir", "-p", "-m", "700", str(cache))
        machine.run("mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", str(cache))
        machine.run(SHOAL, "join", address, "--token-file", "-", "--region", "there", stdin=token)
        client = head.client()
        stack.callback(client.close)
        volume = Volume.create("data", client=client)
        here, there = (
            stack.enter_context(Sandbox.create(volumes={"/data": volume}, region=region, client=client))
            for region in ("here", "there")
        )
        yield Site(
            head, machine, volume, here, there, storage, database, postgres, url.rpartition("/")[2].partition("?")[0]
        )


def test_what_is_committed_on_one_machine_is_read_on_the_other(site: Site) -> None:
    taken = []
    for number in range(5):
        site.here.run(f"echo {number} > /data/seen", check=True)
        began = time.monotonic()
        site.volume.commit()
        assert site.there.run("cat /data/seen").stdout == f"{number}\n"
        taken.append(time.monotonic() - began)
    print("commit and read elsewhere", [f"{each:.2f}" for each in taken])
    appending = [
        sandbox.exec("python3", "-c", _APPENDER, name) for sandbox, name in ((site.here, "here"), (site.there, "there"))
    ]
    assert [each.wait() for each in appending] == [0, 0]
    assert site.there.run("sort -u /data/lines | wc -l").stdout == "80\n"


def test_a_full_disk_of_caches_only_costs_time(site: Site) -> None:
    site.here.run("head -c 64M /dev/urandom > /data/big && sha256sum < /data/big > /data/sum", check=True)
    site.volume.commit()
    assert site.there.run("sha256sum < /data/big | cmp - /data/sum", check=True).stdout == ""
    site.there.run("head -c 64M /dev/urandom > /data/big2 && sha256sum < /data/big2 > /data/sum2", check=True)
    assert site.here.run("sha256sum < /data/big2 | cmp - /data/sum2", check=True).stdout == ""


@pytest.mark.parametrize("fault", ["slow", "errors", "away", "hangs"])
def test_storage_fails(site: Site, fault: Fault) -> None:
    written, failed = site.written(f"s3-{fault}", site.fails(site.storage, fault, 4), 8)
    print(fault, len(written), failed[:3])
    assert written
    site.nothing_is_lost(f"s3-{fault}", written)
    site.volume.commit()


@pytest.mark.parametrize("fault", ["slow", "away", "hangs"])
def test_the_database_fails(site: Site, fault: Fault) -> None:
    written, failed = site.written(f"db-{fault}", site.fails(site.database, fault, 4), 8)
    print(fault, len(written), failed[:3])
    assert written
    site.nothing_is_lost(f"db-{fault}", written)
    site.volume.commit()


def test_storage_that_stands_still_is_told(site: Site) -> None:
    site.storage.fault = "hangs"
    try:
        _until(lambda: [each.info().mounts_still for each in (site.here, site.there)] == [("/data",)] * 2, "told", 40)
    finally:
        site.storage.fault = "none"
    _until(lambda: [each.info().mounts_still for each in (site.here, site.there)] == [()] * 2, "it answers again", 40)
    site.nothing_is_lost("none", [])


@pytest.mark.parametrize("what", ["storage", "database"])
def test_a_commit_that_cannot_finish_says_so(site: Site, what: str) -> None:
    proxy: FaultyProxy = getattr(site, what)
    site.here.run("echo kept > /data/kept", check=True)
    proxy.fault = "away"
    began = time.monotonic()
    try:
        with pytest.raises(ShoalError) as refused:
            site.volume.commit()
        print(what, f"{time.monotonic() - began:.1f} s", repr(refused.value))
        assert isinstance(refused.value, Unavailable)
    finally:
        proxy.fault = "none"
    _until(lambda: commits(site.volume), "it is committed")
    assert site.there.run("cat /data/kept").stdout == "kept\n"


def test_the_database_server_is_killed_while_a_sandbox_writes(site: Site) -> None:
    """What is committed is there, and no number is handed out twice, though nothing else of the last seconds had come
    to the disk."""
    site.postgres.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
    site.postgres.execute("SELECT pg_reload_conf()")
    committed: list[int] = []
    numbers: dict[str, dict[str, int]] = {}
    outcome: list[object] = []

    def kill() -> None:
        found = sorted(int(name) for name in site.here.run("ls /data/killed").stdout.split())
        committed.extend(found[:-1])  # the last may still be open
        site.volume.commit()
        time.sleep(0.5)
        sandbox.run("echo new > /data/new", check=True)  # takes its first numbers of data
        numbers["before"] = _numbers(site, other)
        site.postgres.kill()
        committing = threading.Thread(target=lambda: outcome.append(_outcome(site.volume)))
        committing.start()
        time.sleep(2)
        site.postgres.start()
        committing.join(120)
        assert not committing.is_alive()

    other = Volume.create("numbers", client=site.head.client())
    with Sandbox.create(volumes={"/data": other}, region="here", client=site.head.client()) as sandbox:
        written, failed = site.written("killed", kill, 12)
        numbers["after"] = _numbers(site, other)
        print(len(committed), len(written), failed[:3], outcome, numbers)
    assert committed
    assert isinstance(outcome[0], Unavailable | None)
    assert all(numbers["after"][name] >= number for name, number in numbers["before"].items())
    assert len(numbers["before"]) == 3
    site.nothing_is_lost("killed", [*committed, *written[-20:]])
    _until(lambda: commits(site.volume), "it is committed")
    other.delete(now=True)


def test_a_volume_is_removed_while_two_machines_have_it_mounted(site: Site) -> None:
    client = site.head.client()
    made = Volume.create("removed", client=client)
    with Sandbox.create(volumes={"/data": made}, region="there", client=client) as there:
        with Sandbox.create(volumes={"/data": made}, region="here", client=client) as here:
            made.delete(now=True)
            with pytest.raises(VolumeNotFound):
                Sandbox.create(volumes={"/data": made}, client=client)
            here.run("echo here > /data/here", check=True)
            time.sleep(FRESH_S)
            assert there.run("cat /data/here && echo there > /data/there").stdout == "here\n"
            time.sleep(FRESH_S)
            assert here.run("cat /data/there").stdout == "there\n"
        time.sleep(6)  # the controller looks every 5 s
        assert there.run("cat /data/here /data/there").stdout == "here\nthere\n"
        assert _schemas(site, made) == 1
    _until(lambda: _schemas(site, made) == 0, "it is removed")
    assert f"JuiceFS:{made.id}" not in site.machine.run("cat", "/proc/self/mountinfo").stdout
    assert f"JuiceFS:{made.id}" not in Path("/proc/self/mountinfo").read_text()
    assert not list(Path(site.head.environ["SHOAL_STATE_DIR"]).glob(f"s3/**/{made.id}/chunks/**/*_*"))


def test_the_node_actor_is_killed_while_a_sandbox_writes(site: Site) -> None:
    written, failed = site.written("actor", lambda: _kill_actor(site), 8)
    assert written
    assert failed == []
    site.nothing_is_lost("actor", written)
    _until(lambda: commits(site.volume), "it is committed")


@pytest.mark.parametrize("where", ["here", "there"])
def test_the_helper_of_one_machine_is_killed_while_a_sandbox_of_the_other_writes(site: Site, where: str) -> None:
    """`here`: where it writes. Only calls on that machine fail, and both machines find what was told to be written."""
    name, healed = f"helper-{where}", "cat /data/kept-there"
    site.there.run("echo kept > /data/kept-there", check=True)

    def kill() -> None:
        elsewhere = processes_of(site.machine)
        for pid in helpers(site.volume):
            if (pid in elsewhere) == (where == "there"):
                with suppress(ProcessLookupError):  # one ends with the other
                    os.kill(pid, signal.SIGKILL)

    written, failed = site.written(name, kill, 10)
    print(where, len(written), failed[:3])
    assert len(written) > 20
    assert bool(failed) == (where == "here")
    for sandbox in (site.here, site.there):
        _until(lambda sandbox=sandbox: sandbox.run(healed).stdout == "kept\n", "it is there again")  # type: ignore[misc]
    site.nothing_is_lost(name, written)
    assert _lost(site.here, name, written) == "lost []\n"
    _until(lambda: commits(site.volume), "it is committed")


def test_a_machine_dies_while_it_commits(site: Site) -> None:
    """The last: it does not come back."""
    site.there.run("mkdir -p /data/dies", check=True)
    process = site.there.exec("python3", "-c", _WRITER, "dies", "60")
    told = []
    for line in process.stdout:
        told.append(int(line.split()[1]))
        if len(told) == 20:
            break
    outcome: list[object] = []

    def commit() -> None:
        try:
            site.volume.commit()
            outcome.append(None)
        except ShoalError as error:
            outcome.append(error)

    committing = threading.Thread(target=commit)
    committing.start()
    time.sleep(0.1)
    site.machine.unplug()
    for pid in processes_of(site.machine):
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    committing.join(120)
    print("commit", outcome, f"{time.monotonic() - began:.1f} s")
    assert not committing.is_alive()
    assert outcome[0] is None or isinstance(outcome[0], Unavailable)
    assert _lost(site.here, "dies", told) == "lost []\n"
    _until(lambda: commits(site.volume), "it is committed", 120)


def _lost(sandbox: Sandbox, name: str, written: list[int]) -> str:
    """What a sandbox does not find of what was told to be written."""
    sandbox.files.write_text("/tmp/written", "\n".join(map(str, written)))
    found = sandbox.run("python3", "-c", _READER, name)
    return found.stdout + found.stderr


def _kill_actor(site: Site) -> None:
    cluster = cluster_file.read(Path(site.head.environ["SHOAL_STATE_DIR"]))
    assert cluster is not None
    elsewhere = processes_of(site.machine)
    found = processes.of_cluster(cluster.cluster, Path(cluster.temp_dir))
    (actor,) = (
        each.pid for each in found if each.pid not in elsewhere and command_line(each.pid).startswith("ray::NodeActor")
    )
    os.kill(actor, signal.SIGKILL)


def _numbers(site: Site, volume: Volume) -> dict[str, int]:
    """The next numbers that the metadata of a volume hands out."""
    schema = f"shoal_{volume.id.replace('-', '_')}"
    found = site.postgres.execute(f"SELECT name, value FROM {schema}.jfs_counter WHERE name LIKE 'next%'", site.name)
    return {name: value for name, value in found if name in ("nextInode", "nextChunk", "nextSession")}


def _schemas(site: Site, volume: Volume) -> int:
    schema = f"shoal_{volume.id.replace('-', '_')}"
    return len(site.postgres.execute(f"SELECT 1 FROM pg_namespace WHERE nspname = '{schema}'", site.name))


def _outcome(volume: Volume) -> ShoalError | None:
    try:
        volume.commit()
    except ShoalError as error:
        return error
    return None


def _until(true: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it never came to be: {what}"
        time.sleep(0.2)
